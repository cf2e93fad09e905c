// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"testing"
)

// vector is one of testdata/vectors.json, which names its sources. All are for X25519 and
// AES-128-GCM.
type vector struct {
	SKR, KeyConfig, Request, SKE, Enc, Info, EncapsulatedRequest, Response, Secret, ResponseNonce,
	Key, Nonce,
	EncapsulatedResponse hexBytes
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func vectors(t testing.TB) (single, chunked vector) {
	t.Helper()
	var v struct{ RFC9458, Chunked vector }
	text, err := os.ReadFile("testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []vector{v.RFC9458, v.Chunked} {
		if len(x.SKR) != 32 || len(x.EncapsulatedRequest) == 0 || len(x.EncapsulatedResponse) == 0 {
			t.Fatal("testdata/vectors.json lacks a vector")
		}
	}
	return v.RFC9458, v.Chunked
}

// one is a Keys with one key.
type one struct{ *PrivateKey }

func (k one) Key(id uint8, kem uint16) *PrivateKey {
	if k.config.id != id || k.config.kem.id != kem {
		return nil
	}
	return k.PrivateKey
}

func (v vector) key(t testing.TB) one {
	t.Helper()
	k, err := privateKey(v.KeyConfig[0], X25519, v.SKR, aes128)
	if err != nil {
		t.Fatal(err)
	}
	return one{k}
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s\n got %x\nwant %x", what, got, want)
	}
}

// TestVectorConfigs checks the keys and contexts of both examples.
func TestVectorConfigs(t *testing.T) {
	whole, parts := vectors(t)
	for name, x := range map[string]struct {
		vector
		labels
	}{"RFC 9458": {whole, single}, "chunked": {parts, chunked}} {
		t.Run(name, func(t *testing.T) {
			c, err := parseConfig(x.KeyConfig)
			if err != nil || c == nil {
				t.Fatal(c, err)
			}
			k := x.key(t)
			same(t, "public key", c.public.Bytes(), k.config.public.Bytes())
			same(t, "encoded", AppendConfigs(nil, c)[2:], x.KeyConfig)
			same(t, "info", x.labels.info(c.header()), x.Info)
			same(t, "header", c.header(), x.EncapsulatedRequest[:headerLen])
			ephemeral, err := ecdh.X25519().NewPrivateKey(x.SKE)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "enc", ephemeral.PublicKey().Bytes(), x.Enc)
			// The example's configuration offers AES-128-GCM, and not AES-256-GCM.
			got, err := ParseConfigs(AppendConfigs(nil, c))
			if err != nil || len(got) != 1 || !got[0].Equal(c) || !got[0].AES128() {
				t.Errorf("ParseConfigs: %v, %v", got, err)
			}
		})
	}
}

func TestVectorRFC9458(t *testing.T) {
	v, _ := vectors(t)
	request, x, err := openSingle(v.EncapsulatedRequest, v.key(t))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "request", request, v.Request)
	same(t, "enc", x.head[headerLen:], v.Enc)
	same(t, "secret", x.secret, v.Secret)

	a, err := newAnswer(aes128, bytes.Clone(x.secret), v.Enc, v.ResponseNonce)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "nonce", a.nonce[:], v.Nonce)
	sealed, err := a.seal(bytes.Clone(v.ResponseNonce), v.Response, false)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "sealed response", sealed, v.EncapsulatedResponse)

	q := &Request{config: x.config, head: v.EncapsulatedRequest[:headerLen+32],
		secret: bytes.Clone(v.Secret)}
	response, err := q.openSingleResponse(v.EncapsulatedResponse)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "response", response, v.Response)
}

func TestVectorChunked(t *testing.T) {
	_, v := vectors(t)
	x, err := Open(bytes.NewReader(v.EncapsulatedRequest), v.key(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "secret", x.secret, v.Secret)
	// The draft: 12 bytes, 13 bytes, and a final chunk with none.
	for _, n := range []int{12, 13} {
		b := make([]byte, 64)
		got, err := x.Request().Read(b)
		if err != nil || got != n {
			t.Fatalf("chunk of %d bytes, %v; want %d", got, err, n)
		}
		same(t, "chunk", b[:n], v.Request[:n])
		v.Request = v.Request[n:]
	}
	if n, err := x.Request().Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}

	a, err := newAnswer(aes128, bytes.Clone(v.Secret), v.Enc, v.ResponseNonce)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "nonce", a.nonce[:], v.Nonce)
	var sealed bytes.Buffer
	w := newWriter(&sealed, bytes.Clone(v.ResponseNonce), a.seal, a.wipe)
	for _, piece := range [][]byte{v.Response[:1], v.Response[1:]} {
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	same(t, "sealed response", sealed.Bytes(), v.EncapsulatedResponse)

	q := &Request{config: x.config, head: v.EncapsulatedRequest[:headerLen+32],
		secret: bytes.Clone(v.Secret)}
	r, err := q.Response(bytes.NewReader(v.EncapsulatedResponse), 0)
	if err != nil {
		t.Fatal(err)
	}
	response, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "response", response, v.Response)
}

// TestVectorKey checks the example's AES key through what it decrypts: the answer keeps no copy to
// compare.
func TestVectorKey(t *testing.T) {
	for _, v := range func() []vector { a, b := vectors(t); return []vector{a, b} }() {
		a, err := newAnswer(aes128, bytes.Clone(v.Secret), v.Enc, v.ResponseNonce)
		if err != nil {
			t.Fatal(err)
		}
		sealed, _ := a.seal(nil, []byte("x"), true)
		plain, err := gcmOf(t, v.Key).Open(nil, v.Nonce, sealed, []byte("final"))
		if err != nil || string(plain) != "x" {
			t.Errorf("the example's key does not open what was sealed: %v", err)
		}
	}
}
