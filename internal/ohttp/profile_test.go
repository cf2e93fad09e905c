// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit/profile"
)

var update = flag.Bool("update", false, "write testdata/ohttp-profile")

const root = "../.."

// The files are what package profile makes of the specification. After a change of the profile:
// go test ./internal/ohttp -run '^TestProfileFiles$' -update
func TestProfileFiles(t *testing.T) {
	for name, content := range profile.Files() {
		want, err := profile.Encode(content)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(profile.Dir(root), name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what package profile makes: %v", name, err)
		}
	}
}

func readProfile[T any](t testing.TB, name string) (content T) {
	t.Helper()
	if err := profile.Read(root, name, &content); err != nil {
		t.Fatal(err)
	}
	return content
}

// keyOf makes the key of a vector, which offers AES-256-GCM, AES-128-GCM, or both.
func keyOf(t testing.TB, k profile.Key) one {
	t.Helper()
	var offer []*aead
	for _, id := range k.AEADs {
		for _, a := range aeads {
			if a.id == id {
				offer = append(offer, a)
			}
		}
	}
	key, err := privateKey(k.ID, k.KEM, k.Seed, offer...)
	if err != nil {
		t.Fatal(err)
	}
	return one{key}
}

// clientOf is the client's half of a vector's exchange, after it has sealed the request.
func clientOf(t testing.TB, x profile.Exchange, key one) *Request {
	t.Helper()
	c := key.configOf(x.Request.Header)
	if c == nil {
		t.Fatalf("%s: the key does not offer the suite", x.Name)
	}
	return &Request{config: c, head: bytes.Clone(x.Request.Sealed[:headerLen+c.kem.enc]),
		secret: bytes.Clone(x.Answer.Secret)}
}

// TestProfileExchanges opens the requests and the answers, and checks every value on the way.
func TestProfileExchanges(t *testing.T) {
	all := readProfile[profile.Exchanges](t, "exchanges.json")
	if len(all.Exchanges) != 4 {
		t.Fatalf("%d exchanges", len(all.Exchanges))
	}
	for _, v := range all.Exchanges {
		t.Run(v.Name, func(t *testing.T) {
			key := keyOf(t, v.Key)
			same(t, "configuration", key.config.Encoded(), v.Key.Config)
			fingerprint := key.config.Fingerprint()
			same(t, "fingerprint", fingerprint[:], v.Key.Fingerprint)
			x, message, err := openRequest(v.Request.Sealed, key)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "message", message, v.Request.Message)
			same(t, "info", chunked.info(x.config.header()), v.Request.Info)
			same(t, "secret", x.secret, v.Answer.Secret)
			id := x.ID()
			same(t, "ID", id[:], v.Request.ID)
			got, err := readAnswer(clientOf(t, v, key), v.Answer.Sealed)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "answer", got, v.Answer.Message)
			// The gateway's half, with the vector's nonce.
			a, err := newAnswer(x.config.aead, x.secret, x.head[headerLen:], v.Answer.Nonce)
			if err != nil {
				t.Fatal(err)
			}
			sealed, left := bytes.Clone(v.Answer.Nonce), uint64(maxChunks)
			for _, c := range v.Answer.Chunks {
				if sealed, err = appendChunk(sealed, c.Plain, c.Final, a.seal, &left); err != nil {
					t.Fatal(err)
				}
			}
			same(t, "sealed answer", sealed, v.Answer.Sealed)
		})
	}
}

// No beginning of a request or an answer is a whole one.
func TestProfilePrefixes(t *testing.T) {
	for _, v := range readProfile[profile.Exchanges](t, "exchanges.json").Exchanges[2:] {
		key := keyOf(t, v.Key)
		for n := range v.Request.Sealed {
			if _, got, err := openRequest(v.Request.Sealed[:n], key); err == nil {
				t.Fatalf("%s: cut to %d bytes it opens to %q", v.Name, n, got)
			}
		}
		client := clientOf(t, v, key)
		for n := range v.Answer.Sealed {
			if got, err := readAnswer(client, v.Answer.Sealed[:n]); err == nil {
				t.Fatalf("%s: cut to %d bytes the answer is %q", v.Name, n, got)
			}
		}
	}
}

func TestProfileAnswers(t *testing.T) {
	exchanges := make(map[string]profile.Exchange)
	for _, x := range readProfile[profile.Exchanges](t, "exchanges.json").Exchanges {
		exchanges[x.Name] = x
	}
	verdicts := make(map[string]int)
	for _, c := range readProfile[profile.Answers](t, "answers.json").Cases {
		x := exchanges[c.Exchange]
		got, err := readAnswer(clientOf(t, x, keyOf(t, x.Key)), c.Sealed)
		verdict := ""
		switch {
		case err == nil:
			verdict = profile.Complete
		case errors.Is(err, ErrTruncated):
			verdict = profile.Truncated
		case errors.Is(err, ErrDecryption), errors.Is(err, ErrEmptyChunk):
			verdict = profile.Refused
		}
		if verdict != c.Verdict || !bytes.Equal(got, c.Opened) {
			t.Errorf("%s, %s: %s (%v), want %s; %q", c.Exchange, c.Name, verdict, err, c.Verdict,
				got)
		}
		verdicts[verdict]++
	}
	if verdicts[profile.Complete] != 2 || verdicts[profile.Truncated] < 10 ||
		verdicts[profile.Refused] < 20 {
		t.Errorf("%v", verdicts)
	}
}

func TestProfileLists(t *testing.T) {
	l := readProfile[profile.Lists](t, "lists.json")
	key := ed25519.NewKeyFromSeed(l.Seed)
	same(t, "message", listMessage(l.Created, l.Expires, l.List), l.Message)
	if got := SignList(key, l.List, time.Unix(l.Created, 0),
		time.Unix(l.Expires, 0)); got != l.Header {
		t.Errorf("header\n got %s\nwant %s", got, l.Header)
	}
	signer := hex.EncodeToString(l.Signer)
	for _, c := range l.Signed {
		by, at := ListSigner(c.Header, c.List, time.Unix(c.Now, 0))
		if c.Signed != (by == signer) || c.Signed != (at == l.Created) || !c.Signed && by != "" {
			t.Errorf("%s: signed by %q at %d", c.Name, by, at)
		}
	}
	for _, c := range l.Parsed {
		configs, err := ParseConfigs(c.List)
		if c.Malformed || err != nil {
			if !c.Malformed || err != ErrConfig {
				t.Errorf("%s: %v, %v", c.Name, configs, err)
			}
			continue
		}
		best, err := Choose(configs)
		if err != nil {
			if err != ErrNoSuite || c.Chosen != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
			continue
		}
		fingerprint := best.Fingerprint()
		same(t, c.Name, fingerprint[:], c.Chosen)
		if best.aead.id != c.AEAD {
			t.Errorf("%s: AEAD %d", c.Name, best.aead.id)
		}
	}
}

// What the package seals, an implementation of the specification alone opens.
func TestProfileSealsForOthers(t *testing.T) {
	for _, k := range []one{newKeyAES128(t, 1, XWing), newKeyAES128(t, 2, X25519)} {
		for _, c := range []*Config{k.config, k.also} {
			message := bytes.Repeat([]byte("a message. "), 3000) // three chunks
			sealed, _ := seal(t, c, message)
			got, err := profile.OpenRequest(k.Seed(), sealed)
			if err != nil || !bytes.Equal(got, message) {
				t.Errorf("%v: %v", c.header(), err)
			}
		}
	}
}
