// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestMistakesSayWhatToDo is the table of usual mistakes: each has an error that names it, and the
// way out.
func TestMistakesSayWhatToDo(t *testing.T) {
	config := func(change func(*sealedchat.Config)) error {
		c := sealedchat.Config{BaseURL: "https://h.test", Trust: sealedchat.TrustHTTPS()}
		change(&c)
		client, err := sealedchat.NewSecureCompletionClient(c)
		if err == nil {
			_ = client.Close()
		}
		return err
	}
	base := func(url string) func(*testing.T) error {
		return func(*testing.T) error {
			return config(func(c *sealedchat.Config) { c.BaseURL = url })
		}
	}
	key := func(text string) func(*testing.T) error {
		return func(t *testing.T) error {
			return config(func(c *sealedchat.Config) { c.APIKey = secret(t, text) })
		}
	}
	upstream := func(url string) func(*testing.T) error {
		return func(*testing.T) error {
			g, err := sealedchat.NewGateway(sealedchat.GatewayConfig{Upstream: url,
				AllowUnauthenticated: true})
			if err == nil {
				_ = g.Close()
			}
			return err
		}
	}
	create := func(text string) func(*testing.T) error {
		return func(t *testing.T) error {
			_, err := sealedchat.CreateKeyStore(t.Context(), filepath.Join(t.TempDir(), "k"),
				secret(t, text), &sealedchat.KeyStoreOptions{Bits: 2048})
			return err
		}
	}
	imported := func(text func(*testing.T) []byte) func(*testing.T) error {
		return func(t *testing.T) error {
			_, err := memoryStore(t, nil).ImportPEM(t.Context(), text(t), nil)
			return err
		}
	}
	for name, c := range map[string]struct {
		err  func(*testing.T) error
		says []string
	}{
		"BaseURL empty":               {base(""), []string{"Config.BaseURL: required", "https URL"}},
		"BaseURL with /v1":            {base("https://h.test/v1"), []string{`end before "/v1"`}},
		"BaseURL with /v1/":           {base("https://h.test/v1/"), []string{`end before "/v1"`}},
		"BaseURL below /v1":           {base("https://h.test/v1/chat/completions"), []string{`end before "/v1/chat/completions"`}},
		"BaseURL with completions":    {base("https://h.test/x/chat/completions"), []string{`end before "/chat/completions"`}},
		"BaseURL http":                {base("http://127.0.0.1:1"), []string{"use https", "InsecureAllowHTTP"}},
		"BaseURL http, a name":        {base("http://h.test"), []string{"InsecureAllowHTTP"}},
		"BaseURL host and port":       {base("h.test:8443"), []string{"begins with https://"}},
		"BaseURL address and port":    {base("127.0.0.1:8443"), []string{"begins with https://"}},
		"BaseURL a host":              {base("h.test"), []string{"begins with https://"}},
		"BaseURL with LF":             {base("https://h.test\n"), []string{"line break", "trim"}},
		"BaseURL with CR LF":          {base("https://h.test\r\n"), []string{"line break", "trim"}},
		"BaseURL with a space":        {base("https://h.test "), []string{"white space", "trim"}},
		"API key empty":               {key(""), []string{"is empty", "nil"}},
		"API key with LF":             {key("sk-MARKER\n"), []string{"line break", "ReadSecret"}},
		"API key with CR LF":          {key("sk-MARKER\r\n"), []string{"line break", "ReadSecret"}},
		"API key with a space":        {key(" sk-MARKER"), []string{"white space", "trim"}},
		"API key with Bearer":         {key("Bearer sk-MARKER"), []string{"give the key alone"}},
		"API key with bearer":         {key("bearer sk-MARKER"), []string{"give the key alone"}},
		"API key with BOM":            {key("\xef\xbb\xbfsk-MARKER"), []string{"byte order mark"}},
		"API key with LF in it":       {key("sk-\nMARKER"), []string{"control character"}},
		"passphrase empty":            {create(""), []string{"passphrase is empty"}},
		"passphrase short":            {create("MARKER"), []string{"6 bytes, want 8"}},
		"passphrase with LF":          {create("a long MARKER\n"), []string{"line break", "ReadSecret"}},
		"passphrase with CR LF":       {create("a long MARKER\r\n"), []string{"line break", "ReadSecret"}},
		"Upstream empty":              {upstream(""), []string{"GatewayConfig.Upstream: required", "/v1"}},
		"Upstream below /v1":          {upstream("http://127.0.0.1:1/v1/chat/completions"), []string{`end before "/chat/completions"`}},
		"Upstream http to an address": {upstream("http://192.0.2.1/v1"), []string{"not loopback", "InsecureUpstreamHTTP"}},
		"Upstream http to IPv6":       {upstream("http://[2001:db8::1]/v1"), []string{"not loopback", "InsecureUpstreamHTTP"}},
		"Upstream without scheme":     {upstream("127.0.0.1:8000/v1"), []string{"begins with https://"}},
		"a certificate beside the key": {imported(func(t *testing.T) []byte {
			return append(testkit.KeyPEM(t, "rsa-2048"), armored("CERTIFICATE")...)
		}), []string{"CERTIFICATE", "private key alone", "openssl pkey"}},
		"UTF-16": {imported(func(t *testing.T) []byte {
			return append([]byte("\xff\xfe"), bytes.Join(bytes.Split(testkit.KeyPEM(t, "rsa-2048"), nil), []byte{0})...)
		}), []string{"UTF-16", "UTF-8"}},
		"a public key with BOM": {func(t *testing.T) error {
			_, err := sealedchat.ParsePublicKey(append([]byte("\xef\xbb\xbf"), testkit.PublicPEM(t, "rsa-2048")...))
			return err
		}, []string{"byte order mark", "UTF-8"}},
		"no secret in a file": {func(t *testing.T) error {
			path := filepath.Join(t.TempDir(), "key")
			_ = os.WriteFile(path, []byte("\n"), 0o600)
			_, err := sealedchat.ReadSecret(path)
			return err
		}, []string{"no secret in ", "key"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.err(t)
			if err == nil {
				t.Fatal("it is taken")
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "MARKER") || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q repeats the input", err)
			}
		})
	}
}

// armored is a block of no content that matters.
func armored(label string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: []byte{0x30, 0}})
}

// TestUntrimmedPassphraseIsNamed: a store that does not open says that the passphrase was read with
// a line break.
func TestUntrimmedPassphraseIsNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := sealedchat.CreateKeyStore(t.Context(), dir, secret(t, "a long passphrase"),
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for text, named := range map[string]bool{
		"a long passphrase\n": true, "another passphrase\r\n": true, "another passphrase": false,
		"a \x00 long passphrase\n": false,
	} {
		_, err := sealedchat.OpenKeyStore(t.Context(), dir, secret(t, text), nil)
		if !errors.Is(err, sealedchat.ErrPassphrase) ||
			strings.Contains(err.Error(), "line break") != named {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		"key": "key", "key\n": "key", "key\r\n": "key", "key\n\n": "key\n", "key\r": "key\r",
		"key \n": "key ", "a\nb\n": "a\nb", "\x00\xff\n": "\x00\xff", "\n\n": "\n",
		strings.Repeat("k", 64<<10): strings.Repeat("k", 64<<10),
		"":                          "", "\n": "", "\r\n": "", strings.Repeat("k", 64<<10+1): "",
	} {
		path := filepath.Join(dir, "secret")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := sealedchat.ReadSecret(path)
		if want == "" {
			if !errors.Is(err, sealedchat.ErrInvalidRequest) && !errors.Is(err, sealedchat.ErrTooLarge) || s != nil {
				t.Errorf("%d bytes: %v", len(content), err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d bytes: %v", len(content), err)
			continue
		}
		_ = s.Use(func(b []byte) error {
			if string(b) != want {
				t.Errorf("%d bytes became %d", len(content), len(b))
			}
			return nil
		})
		s.Destroy()
	}
	for _, path := range []string{dir, filepath.Join(dir, "nothing"), ""} {
		if s, err := sealedchat.ReadSecret(path); err == nil || s != nil {
			t.Errorf("%q is read", path)
		}
	}
	if _, err := sealedchat.ReadSecret(filepath.Join(dir, "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestRefusedKeysNameWhatLasts: over Oblivious HTTP errors and logs have the signer's fingerprint,
// which survives rotation, and a pin of the other protocol is named.
func TestRefusedKeysNameWhatLasts(t *testing.T) {
	keys := storedKeys(t, "rsa-2048")
	g := startGateway(t, testkit.AnswerText("hi"), func(c *sealedchat.GatewayConfig) { c.Keys = keys })
	server := httptest.NewServer(g)
	defer server.Close()
	signer, err := keys.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := keys.Signer(t.Context()); err != nil || again != signer || again != signerOf(t, g) {
		t.Errorf("the signer is %s, then %s, %v", signer, again, err)
	}
	rsa := publicOf(t, "rsa-2048").Fingerprint()
	wrong := strings.Repeat("ab", 32)
	both := "AcceptServerKey" // the pin is right, the protocol is not
	for name, c := range map[string]struct {
		protocol sealedchat.Protocol
		pin      string
		says     []string
		not      string
	}{
		"ohttp, wrong":    {sealedchat.ProtocolOHTTP, wrong, []string{"signed by " + signer, "expected " + wrong, "operator", "AcceptServerKey", "without a key store", "pin it"}, rsa},
		"ohttp, RSA's":    {sealedchat.ProtocolOHTTP, rsa, []string{"signed by " + signer, "key for version 1", "ProtocolEnvelope"}, both},
		"v1, wrong":       {sealedchat.ProtocolEnvelope, wrong, []string{"key " + rsa, "expected " + wrong, "operator", "AcceptServerKey", "without a key store"}, signer},
		"v1, the signer":  {sealedchat.ProtocolEnvelope, signer, []string{"key " + rsa, "key for Oblivious HTTP", "ProtocolOHTTP"}, both},
		"v1, with sha256": {sealedchat.ProtocolEnvelope, "sha256:" + strings.ToUpper(signer) + "  -", []string{"ProtocolOHTTP"}, both},
	} {
		log := &bytes.Buffer{}
		client := startClient(t, server.URL, func(config *sealedchat.Config) {
			config.Protocol, config.Trust = c.protocol, sealedchat.Pin(c.pin)
			config.Keys = storedKeys(t, "rsa-3072")
			config.Logger = slog.New(slog.NewTextHandler(log, nil))
		})
		_, err := client.Chat(t.Context(), ask("x"))
		refused, ok := errors.AsType[*sealedchat.ServerKeyError](err)
		if !ok {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, part := range c.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", name, err, part)
			}
		}
		text := err.Error() + log.String()
		if strings.Contains(text, c.not) || refused.Signer != "" && strings.Contains(text, refused.Got) {
			t.Errorf("%s: says too much: %s", name, text)
		}
	}
	// A pin that is right in any spelling.
	for _, pin := range []string{signer, "SHA256:" + signer, colons(strings.ToUpper(signer)), signer + "  signer.key"} {
		client := ohttpClient(t, server.URL, func(c *sealedchat.Config) { c.Trust = sealedchat.Pin(pin) })
		if _, err := client.Chat(t.Context(), ask("x")); err != nil {
			t.Errorf("%s: %v", pin, err)
		}
	}
}

func colons(digits string) string {
	var parts []string
	for i := 0; i < len(digits); i += 2 {
		parts = append(parts, digits[i:i+2])
	}
	return strings.Join(parts, ":")
}

// TestSDKIsToldWhichKeyWasSent: a 401 says when no API key went along, and how to send one.
func TestSDKIsToldWhichKeyWasSent(t *testing.T) {
	right := secret(t, "sk-right")
	authenticate, err := sealedchat.AuthenticateKeys(right)
	if err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, testkit.AnswerText("hi"), func(c *sealedchat.GatewayConfig) {
		c.Keys, c.AllowUnauthenticated, c.Authenticate = storedKeys(t, "rsa-2048"), false, authenticate
	})
	server := httptest.NewServer(g)
	defer server.Close()
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP} {
		for name, c := range map[string]struct {
			base, bearer string
			own          string
			told         bool
		}{
			"another origin": {"https://api.openai.test", "sk-right", "", true},
			"no key":         {server.URL, "", "", true},
			"a wrong key":    {server.URL, "sk-wrong", "", false},
			"a wrong one":    {"https://api.openai.test", "sk-right", "sk-wrong", false},
		} {
			client := startClient(t, server.URL, func(config *sealedchat.Config) {
				config.Protocol, config.Keys = protocol, storedKeys(t, "rsa-3072")
				if c.own != "" {
					config.APIKey = secret(t, c.own)
				}
			})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
				c.base+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			if c.bearer != "" {
				req.Header.Set("Authorization", "Bearer "+c.bearer)
			}
			resp, err := client.HTTPClient().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			told := strings.Contains(string(body), "no API key was sent") &&
				strings.Contains(string(body), "Config.APIKey") && strings.Contains(string(body), "origin")
			if resp.StatusCode != http.StatusUnauthorized || told != c.told {
				t.Errorf("%s, %s: %d %s", protocol, name, resp.StatusCode, body)
			}
		}
	}
}

// TestLimitOfAProxyIsNamed: a 413 that is not the gateway's own word names the proxy's limit.
func TestLimitOfAProxyIsNamed(t *testing.T) {
	g := startGateway(t, testkit.AnswerText("hi"), func(c *sealedchat.GatewayConfig) { c.Keys = storedKeys(t, "rsa-2048") })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			_, _ = io.WriteString(w, "<html>413 Request Entity Too Large</html>")
			return
		}
		g.ServeHTTP(w, r)
	}))
	defer server.Close()
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP} {
		client := startClient(t, server.URL, func(c *sealedchat.Config) {
			c.Protocol, c.Keys = protocol, storedKeys(t, "rsa-3072")
		})
		_, err := client.Chat(t.Context(), ask("x"))
		if err == nil || !strings.Contains(err.Error(), "client_max_body_size") {
			t.Errorf("%s: %v", protocol, err)
		}
	}
}

// TestOneLineForEachCall: at level INFO a client's log has one line for each call, whatever became
// of it, and none for keys.
func TestOneLineForEachCall(t *testing.T) {
	const m = "MARKER"
	fail := false
	answer := testkit.AnswerText(m)
	gatewayLog := &bytes.Buffer{}
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fail {
			http.Error(w, m, http.StatusBadRequest)
			return
		}
		answer(w, r)
	}), func(c *sealedchat.GatewayConfig) {
		c.Keys, c.Logger = storedKeys(t, "rsa-2048"), slog.New(slog.NewTextHandler(gatewayLog, nil))
	})
	server := httptest.NewServer(g)
	calls := 0
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP} {
		log := &bytes.Buffer{}
		client := startClient(t, server.URL, func(c *sealedchat.Config) {
			c.Protocol, c.Keys = protocol, storedKeys(t, "rsa-3072")
			c.Logger = slog.New(slog.NewTextHandler(log, nil))
		})
		stream := func(ctx context.Context) (err error) {
			for _, err = range client.Stream(ctx, ask(m)) {
			}
			return err
		}
		chat := func(ctx context.Context) error {
			_, err := client.Chat(ctx, ask(m))
			return err
		}
		for _, c := range []struct {
			call func(context.Context) error
			fail bool
			has  []string
		}{
			{chat, false, []string{"status=200", "attempts=1", "bytes_in=", "bytes_out=", "duration=", "payload_id=", "protocol=" + string(protocol)}},
			{chat, true, []string{"status=400", "attempts=1", "error="}},
			{stream, true, []string{"status=400", "attempts=1", "error="}},
			{stream, false, []string{"attempts=1", "bytes_in="}},
		} {
			fail = c.fail
			log.Reset()
			_ = c.call(t.Context())
			calls++
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			if len(lines) != 1 || !strings.Contains(lines[0], "level=INFO msg=request") ||
				strings.Contains(lines[0], m) {
				t.Errorf("%s: %q", protocol, lines)
				continue
			}
			for _, part := range c.has {
				if !strings.Contains(lines[0], part) {
					t.Errorf("%s: %q has no %s", protocol, lines[0], part)
				}
			}
		}
	}
	server.Close()
	if text := gatewayLog.String(); strings.Contains(text, "method=GET") ||
		strings.Count(text, "msg=request") != calls || strings.Contains(text, m) {
		t.Errorf("the gateway's log: %s", text)
	}
}
