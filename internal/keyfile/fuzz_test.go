// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

func isOneOf(err error, sentinels ...error) bool {
	return slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) })
}

// Every file loads or fails in a documented way, and crypto/rsa accepts a key that loads
// and that survives export. One iteration is the limit here, so that no input costs time.
func FuzzParsePrivateKey(f *testing.F) {
	for _, c := range testkit.Vectors(f, testkit.PrivateKey) {
		f.Add(c.File("private_key"), password(c))
	}
	encrypted, err := MarshalPBES2(testKey(f, "rsa-2048"), []byte("pw"), 1, AllowWeak)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encrypted, []byte("pw"))
	f.Add(append(testkit.PublicPEM(f, "rsa-2048"), encrypted...), []byte("pw"))
	f.Fuzz(func(t *testing.T, file, passphrase []byte) {
		before := bytes.Clone(file)
		k, report, err := parsePrivateKey(file, passphrase, limits{maxIterations: 1})
		if !bytes.Equal(file, before) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			var keyType *KeyTypeError
			var unsupported *UnsupportedError
			if k != nil || report != nil {
				t.Error("a key with an error")
			}
			if !errors.As(err, &keyType) && !errors.As(err, &unsupported) &&
				!isOneOf(err, ErrNotPEM, ErrPublicOnly,
					ErrMultipleKeys, ErrLabel, ErrPKCS8Version, ErrMalformed, ErrTrailing,
					ErrPassphraseNeeded,
					ErrPassphraseSuperfluous,
					ErrKeySize, ErrExponent, ErrMultiPrime, ErrInconsistent, ErrPublicMismatch,
					ErrPassphrase, ErrKDFCost, ErrTooLarge) {
				t.Errorf("an undocumented error: %v", err)
			}
			return
		}
		if _, err := k.PrivateKey(); err != nil {
			t.Errorf("crypto/rsa refuses the key: %v", err)
		}
		exported, err := plainPEM(k)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := ParsePrivateKey(exported, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(ints(again), ints(k)) {
			t.Error("export changed the key")
		}
		if report.Container == PKCS8 && len(passphrase) > 0 {
			t.Error("a superfluous passphrase was accepted")
		}
	})
}

// A header that parses is, to the byte, one that would be written.
func FuzzParseHeader(f *testing.F) {
	file, err := os.ReadFile(filepath.Join("testdata", "keystore-v1.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	if file, err = Seal(&Body{}, testMasterKey(f)); err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, file []byte) {
		parsed, err := ParseHeader(file)
		if err != nil {
			if !isOneOf(err, ErrDamaged, ErrVersion, ErrKDFCost, ErrTooLarge) {
				t.Errorf("an undocumented error: %v", err)
			}
			return
		}
		if parsed.Iterations < 1 || parsed.Iterations > MaxIterations {
			t.Errorf("%d iterations", parsed.Iterations)
		}
		again := base64.StdEncoding.AppendEncode(parsed.encode(), parsed.sealed)
		if !bytes.Equal(append(again, storeTail...), file) {
			t.Error("another file would be written")
		}
	})
}

// A body has one encoding, and a refused body leaves no secret in memory.
func FuzzBody(f *testing.F) {
	for _, b := range []*Body{
		testBody(f), {}, {DataKeys: testBody(f).DataKeys}, {Pins: testBody(f).Pins},
		testConfigs(f), testAEADs(f), {Signer: testConfigs(f).Signer},
		{Signer: testConfigs(f).Signer, ConfigKeys: testConfigs(f).ConfigKeys},
	} {
		seed, err := b.marshal(locked.BestEffort)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(seed.Bytes()))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		buf := inLocked(data)
		b, err := parseBody(buf)
		if err != nil {
			if !isOneOf(err, ErrDamaged, ErrVersion) {
				t.Errorf("an undocumented error: %v", err)
			}
			if buf.Bytes() != nil {
				t.Error("the buffer was not wiped")
			}
			return
		}
		again, err := b.marshal(locked.BestEffort)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), data) {
			t.Error("another body would be written")
		}
		b.Wipe()
		if buf.Bytes() != nil {
			t.Error("the buffer was not cleared")
		}
	})
}

// Only data that was sealed opens, and only under its label.
func FuzzOpenData(f *testing.F) {
	good, err := SealData(testDataKey, 3, "notes", []byte("hello"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "notes")
	f.Add(good, "other")
	f.Add(good[:DataOverhead], "")
	f.Add([]byte(dataMagic), "")
	f.Fuzz(func(t *testing.T, data []byte, label string) {
		plaintext, err := OpenData(lookupTest, label, data)
		if err == nil && (label != "notes" || string(plaintext) != "hello") {
			t.Error("a forgery opened")
		}
		if err != nil && !isOneOf(err, ErrDecryption, errNoGeneration) {
			t.Errorf("an undocumented error: %v", err)
		}
		if len(label) > MaxLabelSize {
			return
		}
		sealed, err := SealData(testDataKey, 3, label, data)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenData(lookupTest, label, sealed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("what was sealed does not open: %v", err)
		}
	})
}
