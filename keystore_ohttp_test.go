// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
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
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/ohttp-keys" || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	list := w.Body.Bytes()
	configs, err := ohttp.ParseConfigs(list)
	if err != nil || len(configs) != 2 || configs[0].KEM() != ohttp.XWing || configs[1].KEM() != ohttp.X25519 {
		t.Fatalf("%v, %v", configs, err)
	}
	key, sig, created, expires := parseKeysSignature(t, w.Header().Get("Ohttp-Keys-Signature"))
	signed := func(list []byte, created, expires int64) bool {
		return ed25519.Verify(key, listMessage(list, created, expires), sig)
	}
	if now := time.Now().Unix(); created < now-5 || created > now || expires-created != 24*3600 || !signed(list, created, expires) {
		t.Errorf("created %d, expires %d", created, expires)
	}
	if signed(list, created+1, expires) || signed(list, created, expires+1) || signed(list[:len(list)-1], created, expires) {
		t.Error("the signature is good for something else")
	}
	infos := configsOf(t, r.g)
	if len(infos) != 2 {
		t.Fatal(infos)
	}
	for i, c := range configs {
		if got, want := infos[i].Fingerprint, fmt.Sprintf("%x", c.Fingerprint()); got != want || infos[i].ID != c.ID() || infos[i].Created.IsZero() {
			t.Errorf("%+v, want %s", infos[i], want)
		}
	}
	if fp := signerOf(t, r.g); fp != fmt.Sprintf("%x", sha256.Sum256(key)) {
		t.Errorf("signer %s", fp)
	}
	head := r.Do(httptest.NewRequest(http.MethodHead, ohttp.Path, nil))
	if head.Code != 200 || head.Body.Len() != 0 || head.Header().Get("Content-Length") != strconv.Itoa(len(list)) {
		t.Errorf("HEAD: %d %v", head.Code, head.Header())
	}
	// X25519 works as well.
	s := fakes.SealFor(t, configs[1], fakes.Inner{}.Encode(t))
	if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil {
		t.Errorf("%+v", a)
	}
}

// A gateway whose key is replaced while clients have the old one: both open, until the grace is over.
func TestObliviousRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: 24 * time.Hour}})
		r := newRig(t, func(c *GatewayConfig) { c.Keys = keys })
		old := r.KeyConfig()
		use := func(c *ohttp.Config) int {
			s := fakes.SealFor(t, c, fakes.Inner{}.Encode(t))
			w := r.Send(s)
			if w.Code != 200 {
				return w.Code
			}
			return s.Open(w).Status
		}
		settle(24*time.Hour + time.Second)
		now := r.KeyConfig()
		if now.Equal(old) || use(old) != 200 || use(now) != 200 {
			t.Error("not both keys open after a rotation")
		}
		settle(2*time.Hour - 2*time.Second) // longer than a client keeps a list
		if use(old) != 200 {
			t.Error("the old key does not open for all of its grace")
		}
		settle(3 * time.Second)
		if status := use(old); status != 422 {
			t.Errorf("after its grace: %d", status)
		}
		if use(now) != 200 {
			t.Error("the new key does not open")
		}
		_ = r.g.Close()
		_ = keys.Close()
	})
}

// The auditor learns which configurations came and went.
func TestConfigEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: time.Hour, Grace: time.Minute}})
		var events []string
		if err := s.SetAuditor(t.Context(), Auditor(func(_ context.Context, e Event) error {
			events = append(events, string(e.Type)+" "+e.Fingerprint)
			return nil
		})); err != nil {
			t.Fatal(err)
		}
		_ = listedIDs(t, s)
		configs := func() []KeyInfo {
			return slices.DeleteFunc(s.Keys(), func(k KeyInfo) bool { return k.Kind == "RSA" || k.Kind == "Ed25519" })
		}
		first := configs()
		settle(time.Hour + 2*time.Minute)
		second := configs()
		slices.Sort(events)
		want := []string{}
		for _, k := range first {
			want = append(want, string(EventKeyGenerated)+" "+k.Fingerprint, string(EventKeyRetired)+" "+k.Fingerprint, string(EventKeyDeleted)+" "+k.Fingerprint)
		}
		for _, k := range second {
			want = append(want, string(EventKeyGenerated)+" "+k.Fingerprint)
		}
		slices.Sort(want)
		if len(first) != 2 || len(second) != 2 || !slices.Equal(events, want) {
			t.Errorf("got %v\nwant %v", events, want)
		}
	})
}
