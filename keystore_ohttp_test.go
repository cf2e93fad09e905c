// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// listedIDs are the ids and KEMs in the order of the list.
func listedIDs(t testing.TB, s *KeyStore) (ids []string) {
	t.Helper()
	configs, err := s.configList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs {
		ids = append(ids, fmt.Sprintf("%s %d", kemName(c.KEM()), c.ID()))
	}
	return ids
}

// Keys for Oblivious HTTP are replaced with the RSA key: by age, and when asked to. Replaced ones leave the list at once,
// open requests until their grace is over, and are wiped then.
func TestConfigRotation(t *testing.T) {
	bothStores(t, KeyStoreOptions{Rotation: Rotation{Every: 10 * time.Hour, Grace: 2 * time.Hour}}, func(t *testing.T, s *KeyStore, _ *maker, dir string) {
		if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 0", "X25519 1"}) {
			t.Fatalf("%v", ids)
		}
		signer, err := s.signerFingerprint()
		if err != nil {
			t.Fatal(err)
		}
		first := s.configKey(0, ohttp.XWing)
		settle(10*time.Hour + time.Second)
		if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 2", "X25519 3"}) {
			t.Errorf("after a rotation: %v", ids)
		}
		if s.configKey(0, ohttp.XWing) != first || s.configKey(0, ohttp.X25519) != nil || s.configKey(4, ohttp.XWing) != nil {
			t.Error("the key that was replaced does not open, or another one does")
		}
		if list := s.keyConfigs(); len(list) != 4 || !list[0].Retired.IsZero() || list[2].Retired.IsZero() || list[0].KEM != "X-Wing" {
			t.Errorf("%+v", list)
		}
		settle(2*time.Hour - 2*time.Second)
		if s.configKey(0, ohttp.XWing) != first {
			t.Error("wiped before its grace was over")
		}
		settle(3 * time.Second)
		if s.configKey(0, ohttp.XWing) != nil || first.Seed() != nil || len(s.keyConfigs()) != 2 {
			t.Error("not wiped when its grace was over")
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ids := listedIDs(t, s); !slices.Equal(ids, []string{"X-Wing 4", "X25519 5"}) {
			t.Errorf("after Rotate: %v", ids)
		}
		if now, err := s.signerFingerprint(); err != nil || now != signer {
			t.Error("the signer changed")
		}
		last := s.configKey(4, ohttp.XWing)
		if dir != "" { // what the file says is the same
			again := openWeak(t, dir, passphrase, nil)
			if !slices.Equal(listedIDs(t, again), listedIDs(t, s)) || again.configKey(2, ohttp.XWing) == nil {
				t.Error("another process has other keys")
			}
			if fp, err := again.signerFingerprint(); err != nil || fp != signer {
				t.Error("another process has another signer")
			}
			if !bytes.Equal(again.configKey(4, ohttp.XWing).Seed(), last.Seed()) {
				t.Error("another process has other private keys")
			}
			_ = again.Close()
		}
		_ = s.Close()
		if last.Seed() != nil {
			t.Error("Close wipes nothing")
		}
		if _, err := s.configList(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := s.withSigner(func(ed25519.PrivateKey) {}); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A store of which nobody has wanted an RSA key makes none for the sake of the others, and replaces those all the same.
func TestConfigRotationAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: time.Hour}})
		for i := range 4 {
			if ids := listedIDs(t, s); ids[0] != fmt.Sprintf("X-Wing %d", 2*i) {
				t.Errorf("after %d hours: %v", i, ids)
			}
			settle(time.Hour + time.Second)
		}
		if n := m.made.Load(); n != 0 {
			t.Errorf("%d RSA keys were made", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1}})
		before := listedIDs(t, s)
		settle(1000 * time.Hour)
		if now := listedIDs(t, s); !slices.Equal(now, before) {
			t.Errorf("replaced without rotation: %v", now)
		}
	})
}

// Many ask at once, from two processes, for keys that do not exist yet: they all get the same.
func TestConfigsAreMadeOnce(t *testing.T) {
	dir := storeDir(t)
	a, _ := createWeak(t, dir, nil)
	b := openWeak(t, dir, passphrase, nil)
	got := make(chan string, 16)
	for i := range cap(got) {
		s := []*KeyStore{a, b}[i%2]
		go func() {
			configs, err := s.configList(t.Context())
			if err != nil {
				got <- err.Error()
				return
			}
			got <- fmt.Sprintf("%x", ohttp.AppendConfigs(nil, configs...))
		}()
	}
	first := <-got
	for range cap(got) - 1 {
		if next := <-got; next != first {
			t.Error("different keys were made")
		}
	}
}

// Key ids go round, and skip those that live.
func TestFreeKeyID(t *testing.T) {
	b := &keyfile.Body{}
	for _, c := range []struct {
		ids  []uint8
		want uint8
	}{{nil, 0}, {[]uint8{0}, 1}, {[]uint8{254, 255}, 0}, {[]uint8{0, 1, 255}, 2}, {[]uint8{7, 3}, 4}, {[]uint8{4, 3}, 5}} {
		b.ConfigKeys = nil
		for _, id := range c.ids {
			b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{ID: id})
		}
		if id, err := freeKeyID(b); id != c.want || err != nil {
			t.Errorf("%v: %d, %v", c.ids, id, err)
		}
	}
	b.ConfigKeys = make([]keyfile.ConfigKey, mostKeys)
	if _, err := freeKeyID(b); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%d keys: %v", mostKeys, err)
	}
}

// A store that cannot be written serves what it has; one without keys says why.
func TestConfigsCannotBeSaved(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	if err := os.Remove(dir + "/keystore.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.configList(t.Context()); err == nil {
		t.Error("keys that are nowhere saved are listed")
	}
}

// askingHandler is a log's handler that asks the store.
type askingHandler struct {
	slog.Handler
	store *KeyStore
	said  []string
}

func (h *askingHandler) Handle(_ context.Context, r slog.Record) error {
	h.said = append(h.said, r.Message)
	_ = h.store.Keys()
	return nil
}

func (h *askingHandler) Enabled(context.Context, slog.Level) bool { return true }

// A key that cannot be moved is used where it is, and the log says so, whose handler may ask the store; or it is refused.
func TestConfigInOrdinaryMemory(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	for policy, want := range map[MemoryPolicy]error{MemoryBestEffort: nil, MemoryRequired: ErrMemoryLimit} {
		h := &askingHandler{}
		s, _ := weakStore(t, &KeyStoreOptions{Memory: policy, Logger: slog.New(h)})
		h.store, s.moveConfig = s, func(*ohttp.PrivateKey, []byte) error { return ohttp.ErrShape }
		before := MemoryReport().Unlocked
		configs, err := s.configList(t.Context())
		if n := MemoryReport().Unlocked - before; n < int64(len(configs))*ohttp.SecretSize || len(configs) == 0 && n != 0 {
			t.Errorf("%v: the report has %d bytes more that are not locked", policy, n)
		}
		if !errors.Is(err, want) || (want == nil) != (len(configs) == 2) || (want == nil) != (len(h.said) == 2) {
			t.Errorf("%v: %d configurations, %v, %q", policy, len(configs), err, h.said)
		}
		if err := s.Close(); err != nil || MemoryReport().Unlocked != before {
			t.Errorf("%v: %v, %v", policy, err, MemoryReport())
		}
	}
}

// Keys of a KEM that is not known here stay in the file.
func TestUnknownKEMStays(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	_ = listedIDs(t, s)
	err := s.change(t.Context(), func(b *keyfile.Body) error {
		b.ConfigKeys = append(b.ConfigKeys, keyfile.ConfigKey{ID: 77, KEM: 0x9999, Seed: make([]byte, 32), Created: time.Now()})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.keyConfigs()) != 2 {
		t.Errorf("%+v", s.keyConfigs())
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = s.change(t.Context(), func(b *keyfile.Body) error {
		if !slices.ContainsFunc(b.ConfigKeys, func(c keyfile.ConfigKey) bool { return c.ID == 77 && !c.Retired.IsZero() }) {
			t.Error("it is gone, or was not retired with the others")
		}
		return errNoChange
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A store whose keys are all of a KEM that is not known here gets some that are; where none can be made, that is an error.
func TestOnlyUnknownKEMs(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	_ = listedIDs(t, s)
	alone := func(b *keyfile.Body) error {
		b.ConfigKeys = []keyfile.ConfigKey{{ID: 77, KEM: 0x9999, Seed: make([]byte, 32), Created: time.Now()}}
		return nil
	}
	if err := s.change(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	listed := func() ([]*ohttp.Config, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // ends a loop
		defer cancel()
		return s.configList(ctx)
	}
	if configs, err := listed(); err != nil || len(configs) != 2 {
		t.Errorf("%d configurations, %v", len(configs), err)
	}
	if err := s.change(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	known := configKEMs
	defer func() { configKEMs = known }()
	configKEMs = nil
	if configs, err := listed(); !errors.Is(err, errNoConfigs) || len(configs) != 0 {
		t.Errorf("%d configurations, %v", len(configs), err)
	}
}

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
	w := r.do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil))
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
	infos, err := r.g.KeyConfigs(t.Context())
	if err != nil || len(infos) != 2 {
		t.Fatal(infos, err)
	}
	for i, c := range configs {
		if got, want := infos[i].Fingerprint, fmt.Sprintf("%x", c.Fingerprint()); got != want || infos[i].ID != c.ID() || infos[i].Created.IsZero() {
			t.Errorf("%+v, want %s", infos[i], want)
		}
	}
	if fp, err := r.g.KeySigner(t.Context()); err != nil || fp != fmt.Sprintf("%x", sha256.Sum256(key)) {
		t.Errorf("signer %s, %v", fp, err)
	}
	head := r.do(httptest.NewRequest(http.MethodHead, ohttp.Path, nil))
	if head.Code != 200 || head.Body.Len() != 0 || head.Header().Get("Content-Length") != strconv.Itoa(len(list)) {
		t.Errorf("HEAD: %d %v", head.Code, head.Header())
	}
	// X25519 works as well.
	s := sealFor(t, configs[1], innerRequest{}.encode(t))
	if a := s.open(r.send(s)); a.status != 200 || a.err != nil {
		t.Errorf("%+v", a)
	}
}

// A list is signed once a second, however many ask for it.
func TestListIsSignedOnceASecond(t *testing.T) {
	s, _ := weakStore(t, nil)
	_ = listedIDs(t, s)
	now := time.Unix(1_765_000_000, 0)
	sign := func(list string, now time.Time) string {
		t.Helper()
		header, err := s.signList([]byte(list), now)
		if err != nil {
			t.Fatal(err)
		}
		return header
	}
	for _, c := range []struct {
		list string
		at   time.Time
	}{{"another list", now}, {"list", now.Add(time.Second)}, {"list", now.Add(-time.Second)}} {
		first := sign("list", now)
		s.configs.signed.header = "kept"
		if got := sign("list", now.Add(time.Second-1)); got != "kept" {
			t.Errorf("signed again: %s", got)
		}
		if got := sign(c.list, c.at); got == "kept" || got == first {
			t.Errorf("%s at %v: the signature of another", c.list, c.at)
		}
	}
	s.configs.signed.header = "kept"
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sign("list", now) == "kept" {
		t.Error("kept when the keys were replaced")
	}
	_ = s.Close()
	if header, err := s.signList([]byte("list"), now); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %q, %v", header, err)
	}
}

// A gateway whose key is replaced while clients have the old one: both open, until the grace is over.
func TestObliviousRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: 24 * time.Hour}})
		r := newRig(t, func(c *GatewayConfig) { c.Keys = keys })
		old := r.keyConfig()
		use := func(c *ohttp.Config) int {
			s := sealFor(t, c, innerRequest{}.encode(t))
			w := r.send(s)
			if w.Code != 200 {
				return w.Code
			}
			return s.open(w).status
		}
		settle(24*time.Hour + time.Second)
		now := r.keyConfig()
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
		first := s.keyConfigs()
		settle(time.Hour + 2*time.Minute)
		second := s.keyConfigs()
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
