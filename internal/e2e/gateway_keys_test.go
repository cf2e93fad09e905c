// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// parseKeysSignature takes the header apart as SPEC.md describes it.
func parseKeysSignature(t *testing.T, header string) (key, sig []byte, created, expires int64) {
	t.Helper()
	fields := make(map[string]string)
	for member := range strings.SplitSeq(header, ", ") {
		name, value, _ := strings.Cut(member, "=")
		fields[name] = value
	}
	bytesOf := func(name string) []byte {
		b, err := base64.StdEncoding.DecodeString(strings.Trim(fields[name], ":"))
		if err != nil || !strings.HasPrefix(fields[name], ":") {
			t.Fatalf("%s: %q", name, fields[name])
		}
		return b
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(fields[name], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return bytesOf("key"), bytesOf("sig"), number("created"), number("expires")
}

// listMessage is the text that is signed, as SPEC.md describes it.
func listMessage(list []byte, created, expires int64) []byte {
	text := []byte("sealedchat ohttp keys v1\x00")
	text = binary.BigEndian.AppendUint64(text, uint64(created))
	text = binary.BigEndian.AppendUint64(text, uint64(expires))
	return append(text, list...)
}

func TestKeyList(t *testing.T) {
	r := newRig(t, nil)
	w := r.Do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil))
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/ohttp-keys" ||
		w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	list := w.Body.Bytes()
	configs, err := ohttp.ParseConfigs(list)
	if err != nil || len(configs) != 2 || configs[0].KEM() != ohttp.XWing ||
		configs[1].KEM() != ohttp.X25519 {
		t.Fatalf("%v, %v", configs, err)
	}
	key, sig, created, expires := parseKeysSignature(t, w.Header().Get("Ohttp-Keys-Signature"))
	signed := func(list []byte, created, expires int64) bool {
		return ed25519.Verify(key, listMessage(list, created, expires), sig)
	}
	if now := time.Now().Unix(); created < now-5 || created > now || expires-created != 24*3600 ||
		!signed(list, created, expires) {
		t.Errorf("created %d, expires %d", created, expires)
	}
	if signed(list, created+1, expires) || signed(list, created, expires+1) ||
		signed(list[:len(list)-1], created, expires) {
		t.Error("the signature is good for something else")
	}
	infos := configsOf(t, r.g)
	if len(infos) != 2 {
		t.Fatal(infos)
	}
	for i, c := range configs {
		if got, want := infos[i].Fingerprint, fmt.Sprintf("%x", c.Fingerprint()); got != want ||
			infos[i].ID != c.ID() || infos[i].Created.IsZero() {
			t.Errorf("%+v, want %s", infos[i], want)
		}
	}
	if fp := signerOf(t, r.g); fp != fmt.Sprintf("%x", sha256.Sum256(key)) {
		t.Errorf("signer %s", fp)
	}
	head := r.Do(httptest.NewRequest(http.MethodHead, ohttp.Path, nil))
	if head.Code != 200 || head.Body.Len() != 0 ||
		head.Header().Get("Content-Length") != strconv.Itoa(len(list)) {
		t.Errorf("HEAD: %d %v", head.Code, head.Header())
	}
	// X25519 works as well.
	s := fakes.SealFor(t, configs[1], fakes.Inner{}.Encode(t))
	if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil {
		t.Errorf("%+v", a)
	}
}

// signerOf is the fingerprint of the key that signs a gateway's list.
func signerOf(t testing.TB, g *sealedchat.Gateway) string {
	t.Helper()
	keys, err := g.Keys(t.Context())
	if err != nil || keys[len(keys)-1].Kind != "Ed25519" {
		t.Fatal(keys, err)
	}
	return keys[len(keys)-1].Fingerprint
}

// TestNextKeyUnderPin announces a gateway's next key before it is in use: clients of protocol v1
// that pin both go on through the rotation. Before it, a message that is sealed to the next key
// does not open, and the gateway gives that key to nobody.
func TestNextKeyUnderPin(t *testing.T) {
	keys := memoryStore(t, &sealedchat.KeyStoreOptions{Bits: 2048})
	importKey(t, keys, storedKey(t, "rsa-2048"))
	r := newRig(t, func(c *sealedchat.GatewayConfig) { c.Keys = keys })
	before, err := keys.Public(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next, err := keys.Next(t.Context())
	if err != nil || next.Fingerprint() == before.Fingerprint() {
		t.Fatal(next, err)
	}
	list, err := r.g.Keys(t.Context())
	if err != nil || slices.ContainsFunc(list, func(k sealedchat.KeyInfo) bool {
		return k.Fingerprint == next.Fingerprint()
	}) {
		t.Errorf("%+v, %v", list, err)
	}
	if k := keys.Keys()[1]; k.Fingerprint != next.Fingerprint() || !k.Activated.IsZero() {
		t.Errorf("%+v", k)
	}
	with := func(rt http.RoundTripper) *sealedchat.SecureCompletionClient {
		return startClient(t, "http://127.0.0.1", func(c *sealedchat.Config) {
			c.Transport = rt
			c.Trust = sealedchat.Pin(before.Fingerprint(), next.Fingerprint())
		})
	}
	direct := fakes.Direct(r.g)
	client := with(direct)
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	served := r.g.Stats().Answered
	early := with(testkit.RoundTrip(func(q *http.Request) (*http.Response, error) {
		if q.Method == http.MethodGet {
			return testkit.Respond(http.StatusOK, string(next.PEM())), nil
		}
		return direct.RoundTrip(q)
	}))
	_, err = early.Chat(t.Context(), ask("x"))
	if refused, ok := errors.AsType[*sealedchat.APIError](err); !ok ||
		refused.StatusCode != http.StatusBadRequest || r.g.Stats().Answered != served {
		t.Errorf("sealed to the next key: %v", err)
	}
	if err := keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*sealedchat.SecureCompletionClient{
		"one that has the key before": client, "a new one": with(direct), "the early one": early,
	} {
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now, err := keys.Public(t.Context()); err != nil ||
		now.Fingerprint() != next.Fingerprint() {
		t.Error(now, err)
	}
}
