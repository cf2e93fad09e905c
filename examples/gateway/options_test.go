// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func TestPortInUse(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	cert := filepath.Join(t.TempDir(), "gateway.pem")
	write(t, cert, []byte("the other gateway's"))
	status, stdout, stderr := once(t, "-listen", other.Listener.Addr().String(), "-upstream",
		"https://a.invalid", "-allow-unauthenticated", "-write-cert", cert)
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 ||
		!strings.Contains(stderr, "listen") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	if b, _ := os.ReadFile(cert); string(b) != "the other gateway's" {
		t.Error("the certificate file of the gateway that runs was overwritten")
	}
}

func once(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := &gatewayProgram{env: environment, stdout: &out, stderr: &errs, keyBits: 2048}
	// ends a gateway that should not have started
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status = p.run(ctx, args)
	return status, out.String(), errs.String()
}

func TestWrongInput(t *testing.T) {
	good := keyFile(t, apiKey, 0o600)
	missing := filepath.Join(t.TempDir(), "missing")
	const url = "https://upstream.invalid/v1"
	for _, c := range []struct {
		want string
		args []string
		unix bool
	}{
		{want: "-nonsense", args: []string{"-nonsense"}},
		{want: "only flags", args: []string{"-upstream", url, "-allow-unauthenticated", "word"}},
		{want: "only flags", args: []string{"-upstream", url, "-allow-unauthenticated",
			"two\nlines"}},
		{want: "-upstream is required", args: []string{"-allow-unauthenticated"}},
		{want: "-upstream: ", args: []string{"-upstream", "ftp://a", "-allow-unauthenticated"}},
		{want: "-upstream: ", args: []string{"-upstream", "https://user:secret@a",
			"-allow-unauthenticated"}},
		{want: "-api-keys FILE, or", args: []string{"-upstream", url}},
		{want: "exclude", args: []string{"-upstream", url, "-api-keys", good,
			"-allow-unauthenticated"}},
		{want: "belong together", args: []string{"-upstream", url, "-api-keys", good, "-tls-cert",
			"a"}},
		{want: "belong together", args: []string{"-upstream", url, "-api-keys", good, "-tls-key",
			"a"}},
		{want: "-tls-cert, -tls-key: ", args: []string{"-listen", "127.0.0.1:0", "-upstream", url,
			"-api-keys", good, "-tls-cert", missing, "-tls-key", missing}},
		{want: "-write-cert is for", args: []string{"-upstream", url, "-api-keys", good,
			"-tls-cert", "a", "-tls-key", "b", "-write-cert", "c"}},
		{want: "-write-cert: ", args: []string{"-listen", "127.0.0.1:0", "-upstream", url,
			"-api-keys", good, "-write-cert", filepath.Join(missing, "x")}},
		{want: "-tier", args: []string{"-upstream", url, "-api-keys", good, "-tier", "top"}},
		{want: "-tier", args: []string{"-upstream", url, "-api-keys", good, "-tier", ""}},
		{want: "-protocols", args: []string{"-upstream", url, "-api-keys", good, "-protocols",
			"https"}},
		{want: "-protocols", args: []string{"-upstream", url, "-api-keys", good, "-protocols", ""}},
		{want: "-protocols leaves out", args: []string{"-upstream", url, "-api-keys", good,
			"-protocols", "envelope", "-pad", "64"}},
		{want: "-aes128 is for ohttp", args: []string{"-upstream", url, "-api-keys", good,
			"-protocols", "envelope", "-aes128"}},
		{want: "-rotate-configs is for ohttp", args: []string{"-upstream", url, "-api-keys", good,
			"-protocols", "envelope", "-rotate-configs", "2h"}},
		{want: "-rotate-configs: ", args: []string{"-upstream", url, "-api-keys", good,
			"-rotate-configs", "1m"}},
		{want: "-protocols: envelope stands twice", args: []string{"-upstream", url, "-api-keys",
			good, "-protocols", "envelope,ohttp, envelope"}},
		{want: "or give -insecure-upstream-http", args: []string{"-upstream",
			"http://192.0.2.1/v1", "-api-keys", good}},
		{want: "-replay: everybody on this machine", args: []string{"-upstream", url, "-api-keys",
			good, "-replay", "redis://user:secret@127.0.0.1:1"}},
		{want: "-replay: everybody on this machine", args: []string{"-upstream", url, "-api-keys",
			good, "-replay", "redis://:secret@127.0.0.1:1"}},
		{want: "-replay: with skip_verify", args: []string{"-upstream", url, "-api-keys", good,
			"-replay", "rediss://127.0.0.1:1?skip_verify=true"}},
		{want: "-replay: not a Redis URL", args: []string{"-upstream", url, "-api-keys",
			good, "-replay", "redis://127.0.0.1:1?password=secret"}},
		{want: "-listen: ", args: []string{"-upstream", url, "-api-keys", good, "-listen",
			"127.0.0.1:99999"}},
		{want: "-metrics: ", args: []string{"-upstream", url, "-api-keys", good, "-metrics",
			"127.0.0.1:x"}},
		{want: "-pad: want a power of two", args: []string{"-upstream", url, "-api-keys", good,
			"-pad", "1000"}},
		{want: "-date-window", args: []string{"-upstream", url, "-api-keys", good, "-date-window",
			"0s"}},
		{want: "-date-window: out of range", args: []string{"-upstream", url, "-api-keys", good,
			"-date-window", "48h"}},
		{want: "-listen", args: []string{"-upstream", url, "-api-keys", good, "-listen", "8443"}},
		{want: "missing", args: []string{"-upstream", url, "-api-keys", missing}},
		{want: "no keys in", args: []string{"-upstream", url, "-api-keys",
			keyFile(t, "# nothing\n\n", 0o600)}},
		{want: "line 3", args: []string{"-upstream", url, "-api-keys",
			keyFile(t, "good\n\nwith space too\n", 0o600)}},
		{want: "more than", args: []string{"-upstream", url, "-api-keys",
			keyFile(t, strings.Repeat("a\n", 1<<19+1), 0o600)}},
		{want: "not a regular file", args: []string{"-upstream", url, "-api-keys", t.TempDir()}},
		{want: "chmod 600", args: []string{"-upstream", url, "-api-keys",
			keyFile(t, apiKey, 0o640)}, unix: true},
		{want: "chmod 600", args: []string{"-upstream", url, "-api-keys",
			keyFile(t, apiKey, 0o604)}, unix: true},
		{want: "chmod 600", args: []string{"-upstream", url, "-api-keys",
			keyFile(t, apiKey, 0o602)}, unix: true},
	} {
		if c.unix && runtime.GOOS == "windows" {
			continue
		}
		status, stdout, stderr := once(t, c.args...)
		if status != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 ||
			!strings.Contains(stderr, c.want) {
			t.Errorf("%q: status %d, stdout %q, stderr %q, want 2 and one line with %q", c.args,
				status, stdout, stderr, c.want)
		}
		for _, secret := range []string{apiKey, "with space", "secret", "space too"} {
			if strings.Contains(stderr, secret) {
				t.Errorf("%q: stderr holds a secret: %q", c.args, stderr)
			}
		}
	}
}

// A passphrase that no key store can have is wrong input, and named as such.
func TestShortPassphrase(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := func(name string) string {
		return map[string]string{passphraseVariable: "short"}[name]
	}
	p := &gatewayProgram{env: env, stdout: &stdout, stderr: &stderr, keyBits: 2048}
	status := p.run(t.Context(), []string{"-upstream", "https://a.invalid",
		"-allow-unauthenticated", "-keys", filepath.Join(t.TempDir(), "keys"), "-create-keys"})
	if status != 2 || !strings.Contains(stderr.String(), "gateway: "+passphraseVariable+": ") {
		t.Errorf("status %d, stderr %q", status, stderr.String())
	}
}

func TestBadUpstreamKey(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := func(name string) string {
		return map[string]string{"NOMYO_UPSTREAM_KEY": "two words"}[name]
	}
	p := &gatewayProgram{env: env, stdout: &stdout, stderr: &stderr, keyBits: 2048}
	status := p.run(t.Context(), []string{"-upstream", "https://a.invalid",
		"-allow-unauthenticated"})
	if status != 2 || !strings.HasPrefix(stderr.String(), "gateway: NOMYO_UPSTREAM_KEY: ") ||
		strings.Contains(stderr.String(), "two words") {
		t.Errorf("status %d, stderr %q", status, stderr.String())
	}
}

func TestUpstreamKeyFile(t *testing.T) {
	for content, want := range map[string]string{
		"":            "NOMYO_UPSTREAM_KEY_FILE: invalid request: there is no secret",
		"two words\n": "NOMYO_UPSTREAM_KEY: ",
	} {
		name := keyFile(t, content, 0o600)
		var stdout, stderr bytes.Buffer
		env := func(variable string) string {
			return map[string]string{"NOMYO_UPSTREAM_KEY_FILE": name}[variable]
		}
		p := &gatewayProgram{env: env, stdout: &stdout, stderr: &stderr, keyBits: 2048}
		status := p.run(t.Context(), []string{"-upstream", "https://a.invalid",
			"-allow-unauthenticated"})
		if status != 2 || !strings.Contains(stderr.String(), want) ||
			strings.Contains(stderr.String(), "two words") {
			t.Errorf("status %d, stderr %q", status, stderr.String())
		}
	}
}

func TestHelp(t *testing.T) {
	if status, stdout, stderr := once(t, "-help"); status != 0 || stdout != "" ||
		!strings.Contains(stderr, "-api-keys") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

// The printed pin stays valid for as long as the program runs, unless -rotate says otherwise.
func TestKeyIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{o: &options{}, log: slog.New(slog.DiscardHandler), keyBits: 2048}
		if err := s.openKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer s.close()
		first, err := s.keys.Public(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // the first look after a key is due still finds the old one
			time.Sleep(25 * time.Hour)
			synctest.Wait()
			if now, err := s.keys.Public(t.Context()); err != nil ||
				now.Fingerprint() != first.Fingerprint() {
				t.Errorf("another key after a while: %v", err)
			}
		}
	})
}

// The configurations of Oblivious HTTP are replaced under a signer that stays, unless other
// machines may have copies of the keys.
func TestConfigurationsAreReplaced(t *testing.T) {
	for _, c := range []struct {
		o    options
		want int // after an hour, with those that still open requests
	}{
		{options{}, 4}, {options{rotate: 24 * time.Hour}, 4}, {options{replay: "redis://x"}, 2},
		{options{replay: "redis://x", rotateConfigs: time.Hour}, 4},
		{options{rotateConfigs: -1}, 2}, {options{rotateConfigs: 2 * time.Hour}, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &service{o: &c.o, log: slog.New(slog.DiscardHandler), keyBits: 2048}
			if err := s.openKeys(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer s.close()
			signer, err := s.keys.Signer(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour + time.Second)
			synctest.Wait()
			configs := 0
			for _, k := range s.keys.Keys() {
				if k.Kind == "X-Wing" || k.Kind == "X25519" {
					configs++
				}
			}
			if now, err := s.keys.Signer(t.Context()); err != nil || now != signer ||
				configs != c.want {
				t.Errorf("%+v: %d configurations, %v", c.o, configs, err)
			}
		})
	}
}

func TestSelfSignedNames(t *testing.T) {
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for host, also := range map[string]string{"": hostname, "0.0.0.0": hostname, "::": hostname,
		"192.0.2.7": "192.0.2.7", "gw.example": "gw.example"} {
		c, err := program.SelfSigned("x", host, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"localhost", "127.0.0.1", "::1", also} {
			if err := c.Leaf.VerifyHostname(name); err != nil {
				t.Errorf("listening on %q: %v", host, err)
			}
		}
		if c.Leaf.VerifyHostname("other.example") == nil {
			t.Errorf("listening on %q: good for any name", host)
		}
	}
	a, _ := program.SelfSigned("x", "", time.Hour)
	if len(a.Leaf.SerialNumber.Bytes()) < 8 {
		t.Errorf("serial number %s", hex.EncodeToString(a.Leaf.SerialNumber.Bytes()))
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"/tmp/a.pem": "/tmp/a.pem", "a b": "'a b'",
		"it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// Behind a proxy, one client that sends invalid requests does not use up the limits of the others.
// The clock stands still meanwhile: otherwise a slow machine would get new tokens as fast as it
// asks for them.
func TestAddressHeader(t *testing.T) {
	for _, named := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) { limitsOneAddress(t, named) })
	}
}

func limitsOneAddress(t *testing.T, named bool) {
	p := &gatewayProgram{env: func(string) string { return "" }}
	args := []string{"-upstream", "https://a.invalid", "-allow-unauthenticated"}
	if named {
		args = append(args, "-address-header", "X-Forwarded-For")
	}
	o, err := p.parse(args)
	if err != nil {
		t.Fatal(err)
	}
	service := &service{o: o, log: slog.New(slog.DiscardHandler), env: p.env, keyBits: 2048}
	if err := service.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer service.close()
	gateway := service.gateway
	send := func(from string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost,
			"/.well-known/ohttp-gateway", strings.NewReader("nonsense"))
		r.Header.Set("Content-Type", "message/ohttp-chunked-req")
		r.Header.Set("X-Forwarded-For", "10.0.0.1, "+from)
		w := httptest.NewRecorder()
		gateway.ServeHTTP(w, r)
		return w.Code
	}
	n := 0
	for send("192.0.2.1") != http.StatusTooManyRequests && n < 10000 {
		n++
	}
	if n == 10000 {
		t.Fatal("no limit")
	}
	if limited := send("192.0.2.2") == http.StatusTooManyRequests; limited == named {
		t.Errorf("the header is named: %v; the other address is limited: %v", named, limited)
	}
}

// An address that is taken is named with its flag.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := new(service).listenOn(t.Context(), "-metrics", taken.Addr().String()); err == nil ||
		!strings.HasPrefix(err.Error(), "-metrics: ") {
		t.Error(err)
	}
}
