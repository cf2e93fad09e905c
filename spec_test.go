// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/auditlog"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func specFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "spec", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSpecExample checks every value of SPEC.md's worked example.
func TestSpecExample(t *testing.T) {
	type sealedValues struct {
		AESKey      string `json:"aes_key"`
		Nonce       string `json:"nonce"`
		Tag         string `json:"tag"`
		Fingerprint string `json:"recipient_fingerprint"`
	}
	var values struct {
		Headers           map[string]string `json:"headers"`
		Request, Response sealedValues
	}
	if err := json.Unmarshal(specFile(t, "values.json"), &values); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name, key string
		want      sealedValues
	}{{"request", "server-4096", values.Request}, {"response", "client-4096", values.Response}} {
		t.Run(x.name, func(t *testing.T) {
			key, err := hybrid.NewPrivateKey(storedKey(t, x.key))
			if err != nil {
				t.Fatal(err)
			}
			if key.Public().Fingerprint() != x.want.Fingerprint {
				t.Errorf("fingerprint %s, want %s", key.Public().Fingerprint(), x.want.Fingerprint)
			}
			text := specFile(t, x.name+".envelope.json")
			e, err := envelope.Parse(bytes.Clone(text), len(text))
			if err != nil {
				t.Fatal(err)
			}
			if again := envelope.Append(nil, &e); !bytes.Equal(again, text) {
				t.Errorf("written again it is\n%s\nwant\n%s", again, text)
			}
			dataKey, err := rsa.DecryptOAEP(sha256.New(), nil, key.RSA(), e.WrappedKey, nil)
			if err != nil || hex.EncodeToString(dataKey) != x.want.AESKey {
				t.Fatalf("unwrapped %x (%v), want %s", dataKey, err, x.want.AESKey)
			}
			n := len(e.Sealed) - envelope.TagSize
			if nonce := hex.EncodeToString(e.Sealed[:envelope.NonceSize]); nonce != x.want.Nonce {
				t.Errorf("nonce %s, want %s", nonce, x.want.Nonce)
			}
			if tag := hex.EncodeToString(e.Sealed[n:]); tag != x.want.Tag {
				t.Errorf("tag %s, want %s", tag, x.want.Tag)
			}
			// Plain AES-GCM, beside the code that is tested.
			block, err := aes.NewCipher(dataKey)
			if err != nil {
				t.Fatal(err)
			}
			gcm, err := cipher.NewGCM(block)
			if err != nil {
				t.Fatal(err)
			}
			want := specFile(t, x.name+".json")
			if got, err := gcm.Open(nil, e.Sealed[:envelope.NonceSize],
				e.Sealed[envelope.NonceSize:], nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("plain GCM: %q, %v", got, err)
			}
			if got, err := key.Open(&e, nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("open: %q, %v", got, err)
			}
		})
	}
	text, err := url.PathUnescape(values.Headers[hybrid.HeaderPublicKey])
	if err != nil {
		t.Fatal(err)
	}
	if key, err := ParsePublicKey([]byte(text)); err != nil ||
		key.Fingerprint() != values.Response.Fingerprint {
		t.Errorf("X-Public-Key: %v, %v", key, err)
	}
	if hybrid.PercentEncode(testkit.PublicPEM(t,
		"client-4096")) != values.Headers[hybrid.HeaderPublicKey] {
		t.Error("X-Public-Key is encoded differently")
	}
	if err := chatjson.CheckRequest(specFile(t, "request.json")); err != nil {
		t.Error(err)
	}
	if err := checkCompletion(specFile(t, "response.json"), values.Headers[hybrid.HeaderPayloadID],
		TierStandard); err != nil {
		t.Error(err)
	}
}

// TestSpecAuditLog checks SPEC.md's example of an audit log: with nothing but the standard library,
// then with the code.
func TestSpecAuditLog(t *testing.T) {
	var values struct {
		DataKey  string `json:"data_key"`
		MACKey   string `json:"mac_key"`
		Fragment string `json:"fragment"`
		Head     string `json:"head"`
	}
	if err := json.Unmarshal(specFile(t, "audit.values.json"), &values); err != nil {
		t.Fatal(err)
	}
	dataKey, err := hex.DecodeString(values.DataKey)
	if err != nil {
		t.Fatal(err)
	}
	macKey, err := hkdf.Key(sha256.New, dataKey, nil, "\x00\x17sealedchat audit log v1", 32)
	if err != nil || hex.EncodeToString(macKey) != values.MACKey {
		t.Fatalf("the key is %x, %v", macKey, err)
	}
	text := specFile(t, "audit.log")
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 4 || lines[2] != values.Fragment {
		t.Fatalf("%d lines", len(lines))
	}
	prev, seq := strings.Repeat("0", 64), 0
	for i, line := range lines {
		if i == 2 {
			continue // the unfinished one
		}
		seq++
		head, mac, ok := strings.Cut(strings.TrimSuffix(line, `"}`), `,"mac":"`)
		code := hmac.New(sha256.New, macKey)
		code.Write([]byte(head))
		if !ok || hex.EncodeToString(code.Sum(nil)) != mac {
			t.Errorf("line %d: the code is %x", i+1, code.Sum(nil))
		}
		if !strings.HasPrefix(line, `{"seq":`+strconv.Itoa(seq)+`,"key":1,"prev":"`+prev+`",`) {
			t.Errorf("line %d begins %.120s", i+1, line)
		}
		prev = mac
	}
	sum := sha256.Sum256([]byte(values.Fragment))
	if want := `,"torn":` + strconv.Itoa(len(values.Fragment)) + `,"torn_sha256":"` +
		hex.EncodeToString(sum[:]) + `","lost":2,`; !strings.Contains(lines[3], want) {
		t.Errorf("%s has no %s", lines[3], want)
	}
	if values.Head != "3-"+prev {
		t.Errorf("the head is 3-%s", prev)
	}

	key, err := auditlog.NewKey(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	if made := specAuditLog(t, key); !bytes.Equal(made, text) {
		t.Errorf("written again it is\n%s", made)
	}
	head, err := auditlog.ParseHead(values.Head)
	if err != nil {
		t.Fatal(err)
	}
	chain := &auditlog.Chain{Key: func(uint32) (*auditlog.Key, error) {
		return key, nil
	}, Want: head}
	for i, line := range lines {
		if err := chain.Step("audit.log", i+1, []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if err := chain.Finish("audit.log", 5, nil); err != nil || !chain.WantFound ||
		chain.Torn != 1 ||
		chain.Lost != 2 {
		t.Errorf("%v, %+v", err, chain)
	}
}

// specAuditLog makes the example.
func specAuditLog(t *testing.T, key *auditlog.Key) (text []byte) {
	t.Helper()
	at := auditlog.Head{}
	add := func(e Event, l auditlog.Line) {
		e.User, e.PID, e.Severity = "alice", 4711, slog.LevelInfo
		var err error
		if l.Event, err = e.fields(); err != nil {
			t.Fatal(err)
		}
		l.Seq, l.Prev, l.Generation = at.Seq+1, at.MAC, 1
		text = key.Append(text, &l)
		at = l.Head()
	}
	time := func(s string) (e Event) {
		if err := e.Time.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := time("2026-01-02T03:04:05.123456789Z")
	e.Type, e.PayloadID, e.Bytes, e.Tier = EventRequestSealed,
		"0b7c2c60-4f1e-4f7a-9d55-3a6f1c7e8d21", 1024, TierStandard
	e.Fingerprint = publicOf(t, "server-4096").fingerprint
	add(e, auditlog.Line{})
	e = time("2026-01-02T03:04:06Z")
	e.Type, e.Details = EventNote, map[string]any{"ticket": 42, "session_token": "eyJhbGciOi"}
	add(e, auditlog.Line{})
	fragment := `{"seq":3,"key":1,"prev":"`
	text = append(text, fragment+"\n"...)
	e = time("2026-01-02T03:10:00Z")
	e.Type, e.Reason = EventSchemaRefused, "malformed envelope"
	add(e, auditlog.Line{Torn: uint64(len(fragment)), TornSum: sha256.Sum256([]byte(fragment)),
		Lost: 2})
	return text
}
