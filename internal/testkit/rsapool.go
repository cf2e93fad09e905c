// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"sync/atomic"
)

// storedPrimes have 1024 bits each. Any two make an RSA key of 2048 bits, so that tests need not
// generate keys.
var storedPrimes = [...]string{
	"9kpVW3JUw7yCRzKYW9xvFvYLNJ4U6O4mZj1NjYtKYVTBLvZ7xgmpLeVRf2H357hnfUsl48K6vWbDfTps50jhQ34k" +
		"VxrfPbUcoWtBp+3COK/AsHTIgqLja2pBe9JvitqaRmkZQBVo2ojKy3SoxtXEnJgMtx8uq+NVVZbDLp0/UkU",
	"5bWZPxt41sk3ib5iOiqwfB6Vv+/xpi7zVLHEtsXWXpkzKk0Jraj7RM3DQfp7wSuDIFHed6hd7j2WLO9pvsQatEUN" +
		"6mhnvaS01ahdRtN9Mp0+iiqdodebhI/87kq2gqSLK5dnTJAio+auBkhLGatJeh0VMOgwmpb3Q1lgyxfcX/k",
	"0biLNyb+OHtfkcFUI+8TrbawIOOaVJ5EIYQuExxTZsCAy19hSkLKyEWMDii3StZMFjYvY+gLRN14o8qOg1WYr+ao" +
		"YULeA+f/X+RtsoWHFV4MISvlrfOIiT+cFCFmuR6zuxEKdy9nzr/RndLu9D7RMOMfa446ri5vvafm2+bwkhs",
	"9SvQcEFF/afz89d4mo9YZpQd1+jGxqHFZLkIi+ltX2biXDHxFeN3pZl0Zw8A5sT21jB8Kegf498x3mn/BX6ThYaw" +
		"S5KZC1/dePyj73bbjKBj0304eVgBznXAmNP8H2Xa2PblscqYrwIdEEQy0LEvbu0KOlyMURZ6vuScIMSpAjs",
	"0L6d8ckhoDjF6LEhrTBukb6AY1KCzt4zN12RpaoTqeVqYlBkaD/OIPllZhuYWWweNNYOPOXN6sjUPDL/t+tFL0X3" +
		"7w0fjdobD/civeH/yuhQet/5EBMXKP8VNEIY8zBWNv1mR7p9gI05sDv5Yk4cbVMp9QxCtv/OYv2FDg3Xrbc",
	"3DbuL26q5bOo4XV+tgHYKVmJn0AFyIEe3HxcjYSBPG2vWlhCPra2pVUU0kq1ASx3PKWzh0r0WV/uYlbZIXwU9vza" +
		"UfIaDLzHFsVlOfW/8EIrQafl8bvrsuvELvJUmiVPjDWGkIogiH/8lr5KbzVnvSai+2AHLLg+Y8fzNcGj2Ks",
	"yBt7Ufn2bJxQPR/GOT54Tq6c+TMD/FOBLphol3AWX6RQJeKvOzF89WBKrnNk58UwEukedAvyvbUKLkn/ZCYWzRDN" +
		"quKvWvo/fkxEkqi3Ima4KcwLETEg7OWFI64y9qHKdI7PBHKpHVQMfea4u0mwiZt4Y/5wY9NyyV/P9YwfNg8",
	"5sCyQE12xjNL+8BmBwK1iBDH2LJ6N5Y6RpmvDQonDUhPYUjy7bUZ9qJQPuFJPcfz9MFrCp1LlYmhHrcYGyZc90Gi" +
		"0+yzPFzh1L9d8XWRnTMnsaojkXLFVpg5QhfFJBRDNZqi1bOCCAZaGDLiZUyvh7XtpTqFfAqNScIHGtmC0m8",
	"3mk4C5YWDWZJLpkvvw23RqhLK44Ha3evaA2Kbewhhb6bnWEcadjRRkP7hrA20JxsqCaDbfkOCB0P+9H9k/6UPNyu" +
		"qwrBetfBpPzJPWVpRoDQII/TStOPLNoPmF1HTq7lOtJUwKD8CY4xe1KS4qT/pVij4PCstSCCxSj0Taf16Js",
	"+DUPdIAYWOMNEw7kHE8SE5WKq0BFIu/grV5FmG9b8dPnmLUd35/6LMVdMqm0w0vtJev87r3HJ2sipqHbPIe3XwZR" +
		"GsamZ3EQwcXF+v/jsVryUwd5HO9aTy01Ew5gOEUr+kxLvzyaOTYSP/UVaFjwb63zyDtWDkLiZ5FHRh0urHE",
	"wL4qcLgwPwajavEylSWR3G/G653/Hm7F4AGeq/VYwoWOSPJdMGhbCu5q+G2iGDJANP1TGedaCYgBB0a6inS6P4rZ" +
		"lmBrnD0vybSjbMWVvUgeeq5BKzhE27ib/PMpnfU9GQ93xliHrSauMoyVs9STP4T1UQ1rdmxInKVveMMD9SM",
	"3+okmDxfhik3nRWF2rLCyqDM+4MvTDWXZFzegNmBb4hwqGzGbmyLr/nW42S1WtvKrx3CctI5HLqHFoI2TyQIeK6C" +
		"KzekJFR8MkuIYyRBBY/VJ5iR9nOdedIv6u4hJHvHlDsqSIJ0k6QXg/iKhJnek4+Ap4amBXOy/dNRaRI0S/k",
	"5yIL1GRGAUuQjGivxTEo6JNhk6ixoINk+6dkK3PKDO/4vWc2UY0PgkNjvE8dUFBgn0XBdCcnq9Di672oHc7KDust" +
		"lEkz8vyid6205bhSmpXBYnWw1/y52LtyExa+5cqdGSe67SwhMLpJeGRzuk9y8BZmYI+B8vRik25PNiuPRCs",
	"52D/9L2/vhL4yqaEfXRqkJXYrWM7W9Qy+GQhCaw7xeebLTx8LTyktebpWEj+G3o7ZDlxo6F63F8qxdEkaqu63WPH" +
		"gJhpM2vQHrIcw+4cXgFgQX0ayrgcOWsuRpvTZK5lN/+xxhOUGpHP6Y/zYB+M1+h0vyhyzl+YNG4WOPf+se0",
	"3q5BLYRTijznXg8fiVbtF9+RuMcaRxhB0kUDXW1nzCl0/hV8jl6IwGBRYOvc77jexvBNpC4eSuYmyUZYeNjrs8YM" +
		"YWq0jzw9zMCXVet9C231NpRpWJQd34k6+s6pZRl3nemgsDYsWxl8G6xSvoQjPP/fKCjgTnZEZXcrWcza39c",
	"6DqMWKAtq9HIrQThZgUMKUcb6JvTbbBjYOC5GpTsiMY0bpK3scAKdIZLw04iHBwNePcr8g6bjOrANyKLbNZIGDoK" +
		"4x0oAqGHMmylF03qETi8pQ/j71e4vrN8uaInrL+KmiBUdZXgVjdWj1hT8ZO+EgdjeHzv1wBai52w0ZksPeU",
	"6h5FWq+u9Mb/hoByUMuHPvDCN2G4OQxkh5ta/gKCSY3YP5pjpcBiL4dbkdH79K8y11mXnyWwWaGziKWKYuYhDAHX" +
		"5cB3zMV3XUfp2n6+LdVUgrmPeIYZyfRLqSc/dfDkURmSHLOndoEIN4zcrP3Y/o03keY+LKBhkEDaDGCfC1U",
	"/eWmYXMGbZJFM0yImjb53eBhLliasXVdVH5CVh/+G93KGXzuxCFwfLcNBhMnfeIGHO6VRGqLx7xRTTvKleBzm2s3" +
		"RpdBp4oUm9/zQDk9b/kOSkFOyl/R5EbIINhJXeHL/TBvvEJPKLvSBB1r4hetuQIebY1V21LoxOBtUxsMIlE",
	"2YicvtKrud+pakHrBryaVHiKwnI4uKgh30ggrEx0CywcL/MLHzQZ0UGUaxi11PoTrBs0yiLpQRxnOG1Ln2FaND39" +
		"CzCNcNwLv6G0h9tsD3dfTML/zvv1AvkxQMTuqnpEkJRKLdSjWJFxvVz5MZDYGcZYRBqFMomuwZiLz1FzUZ8",
	"xi9t5cHhaU6yxbuPkQSe9uwV8EpaOKBOUad1y1tv3enrCa+5hDQDFyNeRjzF+L6HULs0C6usGSX+5KnpNgQa7rfs" +
		"or8VC/Ds1hAfIWlBZbUsaJtN9ezcBmlIsX0K/B7OqgUysURNpmbdAqAXUvHdoh3kDt++MGhgPoctiblLLp0",
	"3ZenoBp2fjtPFt6UeLYkhBoOxjuVchut4rANhtkMW8+GGEFaDDpFreUop9NjVwI89pYKstF/ryzmCUrcKl+BBhKA" +
		"hq/eHcU1S+gfSBspmEc7V9p81lvmIk+PFOP2DCtHbLHwWb0+13rShQFf66TaGlu7THkEX8wBHh2tnnson4U",
	"8ao00iMT0DcNP5Dug3vdExuXwNTyMBoaCUqj+VE5nSHttGtjGZd2mE1twF+ygMVUKZj/aC449B2cnwHn1lUXKfI+" +
		"gyb+6t9+xj+7gqhZ4pMKPb90JXmizsFA/GXZhjM8oyqASGtpt1+E7EVSuni1S1WViOQewY1lzcUgCU3ZdXk",
	"9pM7ruo6cPCF3GnZsOOfiwqghgkubLbrLmb7RSUXaJp/LuK+l5jeihf3ZayYcYYVe1p1L9iwRExRwIO4sMkkDEoQ" +
		"feTslLQgXt32IjfBQGfYAnJ870n1qfWpIfE5wWUhSs4OQAt5WhmaCWCbf9qpZbq/spf12oXqkbwBn4S02m0",
	"0D1lJFfPmMamkajzeAstcfGYuzLVj9tMoX/3f1EQVOZp4ThaBeB0dQXfMObG75cztQIa+PpoLoz5z8nrCyNU/Ijb" +
		"4WKaibtghTuJeJHkl6kPoqookh+hFch0UNee1L76986JruiDiVZF515wJ3L2cTvOXQFihmD7vEWjScMWU8s",
}

// PairedKeys is how many keys there are.
const PairedKeys = len(storedPrimes) * (len(storedPrimes) - 1) / 2

// PairedKey makes key number n, modulo PairedKeys. It is the caller's to wipe.
func PairedKey(n int) (*rsa.PrivateKey, error) {
	i, j := 0, 1
	for n = n % PairedKeys; n > 0; n-- {
		if j++; j == len(storedPrimes) {
			i, j = i+1, i+2
		}
	}
	p, err := storedPrime(i)
	if err != nil {
		return nil, err
	}
	q, err := storedPrime(j)
	if err != nil {
		return nil, err
	}
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
		D:         new(big.Int).ModInverse(big.NewInt(65537), phi), Primes: []*big.Int{p, q},
	}
	key.Precompute()
	return key, key.Validate()
}

func storedPrime(i int) (*big.Int, error) {
	b, err := base64.RawStdEncoding.DecodeString(storedPrimes[i])
	return new(big.Int).SetBytes(b), err
}

// Maker stands in for rsa.GenerateKey: it counts, and hands out other keys each time.
type Maker struct {
	first int
	Made  atomic.Int64
	hook  atomic.Pointer[func(bits int) (*rsa.PrivateKey, error)] // instead of it
}

// nextMaker spreads the Makers of one run of the tests over the keys.
var nextMaker atomic.Int64

// NewMaker makes a maker whose keys are others than those of the makers before.
func NewMaker() *Maker { return &Maker{first: int(nextMaker.Add(1)) * 7} }

// NewKey has the signature of rsa.GenerateKey without its reader.
func (m *Maker) NewKey(bits int) (*rsa.PrivateKey, error) {
	if hook := m.hook.Load(); hook != nil {
		return (*hook)(bits)
	}
	return m.Make()
}

// Make makes the next key.
func (m *Maker) Make() (*rsa.PrivateKey, error) { return PairedKey(m.first + int(m.Made.Add(1))) }

// Use has f make the keys, while goroutines are running.
func (m *Maker) Use(f func(bits int) (*rsa.PrivateKey, error)) { m.hook.Store(&f) }
