// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/gateway"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// setEnv sets the variables that [ConfigFromEnv] reads, and empties those that are not named.
func setEnv(t *testing.T, values map[string]string) {
	t.Helper()
	for _, name := range []string{"NOMYO_SERVER_URL", "NOMYO_API_KEY", "NOMYO_KEY_DIR",
		"NOMYO_KEY_PASSWORD", "NOMYO_SERVER_PIN"} {
		t.Setenv(name, values[name])
		if _, ok := values[name]; !ok {
			_ = os.Unsetenv(name) // Setenv brings it back
		}
	}
}

func TestConfigFromEnv(t *testing.T) {
	testkit.NoLeaks(t)
	dir := storeDir(t)
	options, m := weakOptions(t, nil)
	options.WeakKDF = false
	store, err := keystore.Create(t.Context(), dir, secret(t, passphrase), options)
	if err != nil {
		t.Fatal(err)
	}
	s := &KeyStore{store}
	fp := primaryOf(t, s)
	if m.Made.Load() != 1 {
		t.Error("more keys than one")
	}
	s.Close()
	pin, pin2 := publicOf(t, "rsa-2048").Fingerprint(), publicOf(t, "rsa-3072").Fingerprint()
	set := map[string]map[string]string{
		"url":  {"NOMYO_SERVER_URL": "https://proxy.test/base"},
		"key":  {"NOMYO_API_KEY": "sk-123"},
		"keys": {"NOMYO_KEY_DIR": dir, "NOMYO_KEY_PASSWORD": passphrase},
		"pin":  {"NOMYO_SERVER_PIN": pin + ", " + strings.ToUpper(pin2)},
	}
	names := []string{"url", "key", "keys", "pin"}
	for mask := range 1 << len(names) {
		values := make(map[string]string)
		has := make(map[string]bool)
		for i, name := range names {
			if has[name] = mask>>i&1 == 1; has[name] {
				for k, v := range set[name] {
					values[k] = v
				}
			}
		}
		if has["keys"] && mask != 1<<len(names)-1 && mask != 1<<2 {
			continue // at full cost: with everything, and alone
		}
		t.Run(fmt.Sprint(mask), func(t *testing.T) {
			setEnv(t, values)
			c, err := ConfigFromEnv(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.APIKey.Destroy()
			if c.BaseURL != cmp.Or(values["NOMYO_SERVER_URL"], "https://api.nomyo.ai") ||
				(c.APIKey != nil) != has["key"] || (c.Keys != nil) != has["keys"] ||
				(c.Trust != nil) != has["pin"] {
				t.Errorf("%+v", c)
			}
			if has["key"] {
				_ = c.APIKey.Use(func(b []byte) error {
					if string(b) != "sk-123" {
						t.Errorf("API key %q", b)
					}
					return nil
				})
			}
			if has["keys"] {
				defer c.Keys.Close()
				if got := primaryOf(t, c.Keys); got != fp {
					t.Errorf("key %s, want %s", got, fp)
				}
			}
			if has["pin"] {
				if p, ok := c.Trust.(pins); !ok || !slices.Equal(p.list, []string{pin, pin2}) {
					t.Errorf("%+v", c.Trust)
				}
			}
			client, err := NewSecureCompletionClient(c)
			if (err == nil) != has["pin"] { // without a choice of trust there is no client
				t.Errorf("client: %v", err)
			}
			if err == nil {
				client.Close()
			}
		})
	}
	envErrors(t, dir)
}

// envErrors wants what is wrong to be named. There is a store in dir.
func envErrors(t *testing.T, dir string) {
	empty := storeDir(t)
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	const secretWord = "hunter2-hunter2"
	for _, c := range []struct {
		what   string
		values map[string]string
		names  []string // in the error
		want   error
	}{
		{"no store", map[string]string{"NOMYO_KEY_DIR": empty, "NOMYO_KEY_PASSWORD": secretWord},
			[]string{"NOMYO_KEY_DIR", empty, "create"}, fs.ErrNotExist},
		{"no folder", map[string]string{"NOMYO_KEY_DIR": empty + "x",
			"NOMYO_KEY_PASSWORD": secretWord}, []string{"NOMYO_KEY_DIR", "create"}, fs.ErrNotExist},
		{"no passphrase", map[string]string{"NOMYO_KEY_DIR": dir}, []string{"NOMYO_KEY_PASSWORD"},
			ErrPassphrase},
		{"wrong passphrase", map[string]string{"NOMYO_KEY_DIR": dir,
			"NOMYO_KEY_PASSWORD": secretWord}, []string{"NOMYO_KEY_"}, ErrPassphrase},
		{"newline in the API key", map[string]string{"NOMYO_API_KEY": secretWord + "\n"},
			[]string{"NOMYO_API_KEY"}, nil},
		{"API key after the store", map[string]string{"NOMYO_KEY_DIR": dir,
			"NOMYO_KEY_PASSWORD": passphrase, "NOMYO_API_KEY": secretWord + "\r"},
			[]string{"NOMYO_API_KEY"}, nil},
		{"pin", map[string]string{"NOMYO_SERVER_PIN": secretWord}, []string{"NOMYO_SERVER_PIN"},
			nil},
		{"pins", map[string]string{"NOMYO_SERVER_PIN": publicOf(t, "rsa-2048").Fingerprint() +
			",,"}, []string{"NOMYO_SERVER_PIN"}, nil},
		{"blank pin", map[string]string{"NOMYO_SERVER_PIN": " "}, []string{"NOMYO_SERVER_PIN"},
			nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			setEnv(t, c.values)
			got, err := ConfigFromEnv(t.Context())
			if e, ok := errors.AsType[*ConfigError](err); !ok ||
				!strings.HasPrefix(e.Field, "NOMYO_") {
				t.Fatalf("%T %v", err, err)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			for _, name := range c.names {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("%q is not in: %v", name, err)
				}
			}
			if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, "hunter2") ||
				strings.Contains(text, passphrase) {
				t.Errorf("a value is in: %s", text)
			}
			if got.Keys != nil || got.APIKey != nil || got.Trust != nil || got.BaseURL != "" {
				t.Errorf("an error with %+v", got)
			}
		})
	}
	if entries, _ := os.ReadDir(empty); len(entries) != 0 {
		t.Errorf("it made %v", entries)
	}
}

func TestConfigErrors(t *testing.T) {
	destroyed := secret(t, "x")
	destroyed.Destroy()
	for _, c := range []struct {
		field  string
		change func(*Config)
	}{
		{"Config.Trust", func(c *Config) { c.Trust = nil }},
		{"Config.Trust", func(c *Config) { c.Trust = Pin() }},
		{"Config.Trust", func(c *Config) { c.Trust = Pin("abc") }},
		{"Config.BaseURL", func(c *Config) { c.BaseURL = "http://example.com" }},
		{"Config.BaseURL", func(c *Config) { c.BaseURL = "example.com" }},
		{"Config.BaseURL", func(c *Config) { c.BaseURL = "" }},
		{"Config.BaseURL", func(c *Config) { c.BaseURL = "https://example.com/v1" }},
		{"Config.Protocol", func(c *Config) { c.Protocol = "OHTTP" }},
		{"Config.Protocol", func(c *Config) { c.Protocol = "envelope " }},
		{"Config.OHTTP", func(c *Config) { c.OHTTP.Padding = 256 }},
		{"Config.OHTTP", func(c *Config) { c.OHTTP.AllowX25519 = true }},
		{"Config.OHTTP.Padding", func(c *Config) {
			c.Protocol, c.OHTTP.Padding = ProtocolOHTTP, -1
		}},
		{"Config.OHTTP.Padding", func(c *Config) {
			c.Protocol, c.OHTTP.Padding = ProtocolOHTTP, maxPadding+1
		}},
		{"Config.BaseURL", func(c *Config) { c.BaseURL = "https://u:p@example.com" }},
		{"Config.APIKey", func(c *Config) { c.APIKey = secret(t, "") }},
		{"Config.APIKey", func(c *Config) { c.APIKey = secret(t, "a\r\nX: y") }},
		{"Config.APIKey", func(c *Config) { c.APIKey = secret(t, strings.Repeat("k", 4097)) }},
		{"Config.APIKey", func(c *Config) { c.APIKey = destroyed }},
		{"Config.Tier", func(c *Config) { c.Tier = "ultra" }},
		{"Config.Tier", func(c *Config) { c.Tier = "High" }},
		{"Config.Timeout", func(c *Config) { c.Timeout = -1 }},
		{"Config.MaxRequestBytes", func(c *Config) { c.MaxRequestBytes = -1 }},
		{"Config.MaxRequestBytes", func(c *Config) { c.MaxRequestBytes = 1 << 31 }},
		{"Config.MaxResponseBytes", func(c *Config) { c.MaxResponseBytes = -1 }},
		{"Config.MaxResponseBytes", func(c *Config) { c.MaxResponseBytes = 1 << 40 }},
		{"Config.Transport", func(c *Config) {
			c.Transport = &http.Transport{
				TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS10}}
		}},
		{"Config.Transport", func(c *Config) {
			c.Transport = &http.Transport{
				TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS11}}
		}},
		{"Config.Transport", func(c *Config) {
			c.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		}},
		{"Config.Trust", func(c *Config) { c.Trust = FirstUse(nil) }},
		{"Config.Trust", func(c *Config) { c.Trust = FirstUse(&KeyStore{}) }},
		{"Config.Keys", func(c *Config) { c.Keys = &KeyStore{} }},
		{"Config.Transport", func(c *Config) { c.Transport = (*http.Transport)(nil) }},
		{"Config.Transport", func(c *Config) { c.Transport = roundTripFunc(nil) }},
		{"Config.Limiter", func(c *Config) { c.Limiter = (*slowLimiter)(nil) }},
		// foreign RoundTripper
		{"Config.Transport", func(c *Config) {
			c.BaseURL, c.InsecureAllowHTTP = "http://localhost:1", true
		}},
	} {
		config := Config{BaseURL: "https://server.test", Trust: TrustHTTPS(),
			Transport: neverUsed(t), APIKey: secret(t, "good-key")}
		c.change(&config)
		client, err := NewSecureCompletionClient(config)
		e, ok := errors.AsType[*ConfigError](err)
		if client != nil || !ok || e.Field != c.field || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: got %v, %v", c.field, client, err)
		}
		if err != nil && (strings.Contains(err.Error(), "good-key") ||
			strings.Contains(err.Error(), "u:p")) {
			t.Errorf("%s: %v tells too much", c.field, err)
		}
	}
	if _, err := NewEphemeralKeyStore(
		&KeyStoreOptions{Bits: 1024}); !strings.Contains(fmt.Sprint(err), "KeyStoreOptions.Bits") {
		t.Errorf("1024 bits: %v", err)
	}
}

func TestDefaultsAndNoNetworkInConstructor(t *testing.T) {
	t.Setenv("NOMYO_SERVER_URL", "https://from.the.environment")
	t.Setenv("NOMYO_API_KEY", "from-the-environment")
	c, err := NewSecureCompletionClient(Config{BaseURL: "https://server.test", Trust: TrustHTTPS(),
		Transport: neverUsed(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.base.String() != "https://server.test" || c.cfg.Protocol != ProtocolEnvelope ||
		c.cfg.Timeout != 10*time.Minute || c.cfg.MaxRetries != 2 ||
		c.cfg.MaxRequestBytes != 10<<20 ||
		c.cfg.MaxResponseBytes != 64<<20 || c.cfg.APIKey != nil || c.log == nil || !c.ownKeys ||
		c.ownHTTP {
		t.Errorf("got %+v", c.cfg)
	}
	if len(c.cfg.Keys.Keys()) != 0 {
		t.Error("the constructor made a key")
	}
}

// Each field of a gateway's event is in the Auditor's event, under the same name, and each type is
// one that is known.
func TestGatewayEvent(t *testing.T) {
	var e gateway.Event
	from := reflect.ValueOf(&e).Elem()
	for i := range from.NumField() {
		switch f := from.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("text of " + from.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(100 + i))
		default:
			t.Fatalf("%s has a type that the test does not know", from.Type().Field(i).Name)
		}
	}
	event := gatewayEvent(e)
	if event.Memory != nil {
		t.Error("an event of a request has Memory")
	}
	to := reflect.ValueOf(event)
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		got := to.FieldByName(name)
		if !got.IsValid() || fmt.Sprint(got) != fmt.Sprint(from.Field(i)) || got.IsZero() {
			t.Errorf("%s: got %v, want %v", name, got, from.Field(i))
		}
	}
	for _, kind := range []string{
		gateway.GatewayOpened, gateway.GatewayClosed, gateway.RequestOpened, gateway.ResponseSealed,
		gateway.DecryptionRefused, gateway.ReplayRefused, gateway.TierRefused,
		gateway.SchemaRefused, gateway.PanicSurvived,
	} {
		event := gatewayEvent(gateway.Event{Type: kind})
		life := kind == gateway.GatewayOpened || kind == gateway.GatewayClosed
		if !event.Type.valid() || (event.Memory != nil) != life {
			t.Errorf("%q: %+v", kind, event)
		}
	}
}

// Each field of GatewayConfig arrives in the engine's Config, under the same name unless it is one
// of those that change their form.
func TestGatewayConfigArrives(t *testing.T) {
	c := GatewayConfig{
		Authenticate: func(*http.Request) (string, error) {
			return "me", &APIError{StatusCode: 429, RetryAfter: time.Minute}
		},
		UpstreamKey:       secret(t, "upstream-key"),
		UpstreamTransport: testkit.NeverUsed(t),
		Keys:              storedKeys(t, "rsa-2048"),
		Replay:            NewReplayCache(1),
		Audit:             NewSlogAuditor(nil),
		Logger:            slog.New(slog.DiscardHandler),
		Protocols:         []Protocol{ProtocolOHTTP},
		Attester: func(_ context.Context, data [64]byte) (AttestationDocument, error) {
			return AttestationDocument{"test", data[:], [][]byte{{1}}}, io.EOF
		},
		OHTTP: GatewayOHTTP{
			Allow: []string{"GET /v1/models"}, DateWindow: 1, Padding: 2, StrangerRate: 3,
			StrangerBurst: 4, AES128: true,
		},
	}
	from := reflect.ValueOf(&c).Elem()
	for i := range from.NumField() {
		switch f := from.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("text of " + from.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(100 + i))
		case reflect.Bool:
			f.SetBool(true)
		default:
			if f.IsZero() {
				t.Fatalf("%s has a type that the test does not know", from.Type().Field(i).Name)
			}
		}
	}
	config, err := c.engine()
	if err != nil {
		t.Fatal(err)
	}
	to := reflect.ValueOf(*config)
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		got := to.FieldByName(name)
		switch name {
		case "Authenticate":
			account, wait, err := config.Authenticate(nil)
			if account != "me" || wait != time.Minute || err == nil {
				t.Errorf("Authenticate: %q, %v, %v", account, wait, err)
			}
		case "Attester":
			d, err := config.Attester(t.Context(), [64]byte{7})
			if d.Format != "test" || len(d.Evidence) != 64 || d.Evidence[0] != 7 ||
				len(d.Endorsements) != 1 || d.Keys != nil || err != io.EOF {
				t.Errorf("Attester: %+v, %v", d, err)
			}
		case "Keys":
			if config.Keys != c.Keys.store || config.OwnKeys {
				t.Error("other keys, or the gateway's own")
			}
		case "Audit":
			if config.Tell == nil {
				t.Error("nobody is told")
			}
		case "Protocols":
			if config.ServeV1 || !config.ServeOHTTP {
				t.Error("other protocols")
			}
		case "UpstreamKey", "UpstreamTransport", "Replay", "Logger":
			if got.IsZero() {
				t.Errorf("%s is lost", name)
			}
		default:
			if !got.IsValid() || fmt.Sprint(got) != fmt.Sprint(from.Field(i)) {
				t.Errorf("%s: got %v, want %v", name, got, from.Field(i))
			}
		}
	}
}

func TestTrustUnset(t *testing.T) {
	_, err := NewSecureCompletionClient(Config{Transport: neverUsed(t)})
	for _, choice := range []string{"Config.Trust", "TrustHTTPS()", "Pin(", "FirstUse("} {
		if err == nil || !strings.Contains(err.Error(), choice) {
			t.Errorf("%q is not in: %v", choice, err)
		}
	}
}
