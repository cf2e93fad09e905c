// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/seed-017344ad/sealedchat"
)

// paris is a model that knows one answer.
func paris(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, `{"id":"1","object":"chat.completion","created":1765250382,"model":"demo","choices":[
		{"index":0,"message":{"role":"assistant","content":"Paris."},"finish_reason":"stop"}]}`)
}

// startServer is a gateway over HTTPS in front of paris, for everybody.
func startServer() (url, pin string, transport *http.Transport, stop func()) {
	return startGateway(paris, sealedchat.GatewayConfig{AllowUnauthenticated: true})
}

// startGateway is a gateway over HTTPS in front of model. RSA keys of 2048 bits are quick to make.
func startGateway(model http.HandlerFunc, config sealedchat.GatewayConfig) (url, pin string,
	transport *http.Transport, stop func()) {
	upstream := httptest.NewServer(model)
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		log.Fatal(err)
	}
	config.Upstream, config.Keys = upstream.URL+"/v1", cmp.Or(config.Keys, keys)
	gateway, err := sealedchat.NewGateway(config)
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewTLSServer(gateway)
	key, err := config.Keys.Public(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	return server.URL, key.Fingerprint(), server.Client().Transport.(*http.Transport), func() {
		server.Close()
		_ = gateway.Close()
		keys.Close()
		upstream.Close()
	}
}

func Example() {
	url, pin, transport, stop := startServer()
	defer stop()

	key := sealedchat.NewSecret([]byte("an-api-key"))
	defer key.Destroy()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL:   url,
		APIKey:    key,
		Trust:     sealedchat.Pin(pin),
		Transport: transport, // trusts the test server's certificate
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	answer, err := client.Chat(context.Background(), &sealedchat.ChatRequest{
		Model:    "demo",
		Messages: []sealedchat.Message{sealedchat.UserMessage("What is the capital of France?")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text())
	// Output: Paris.
}

// Each piece is authenticated before the loop sees it.
func ExampleSecureCompletionClient_Stream() {
	url, _, transport, stop := startServer()
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(),
		Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for chunk, err := range client.Stream(context.Background(), &sealedchat.ChatRequest{
		Model:    "demo",
		Messages: []sealedchat.Message{sealedchat.UserMessage("What is the capital of France?")},
	}) {
		if err != nil {
			log.Fatal(err) // also if the stream was cut: without an error it was complete
		}
		fmt.Print(chunk.Text())
	}
	// Output: Paris.
}

// An SDK for OpenAI takes the client's http.Client; here it is used by hand.
func ExampleSecureCompletionClient_HTTPClient() {
	url, pin, transport, stop := startServer()
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{BaseURL: url,
		Trust: sealedchat.Pin(pin), Transport: transport})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	// goes to BaseURL all the same
	resp, err := client.HTTPClient().Post("https://api.openai.com/v1/chat/completions",
		"application/json",
		strings.NewReader(`{"model":"demo","messages":[{"role":"user","content":"What is the capital of France?"}],"stream":true}`))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	events, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Status, resp.Header.Get("Content-Type"),
		strings.Count(string(events), "data: "), "events")
	// Output: 200 OK text/event-stream; charset=utf-8 4 events
}

// With a wrong pin nothing is sent but the key fetch.
func ExamplePin() {
	url, _, transport, stop := startServer()
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Trust: sealedchat.Pin(strings.Repeat("00", 32)), Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	_, err = client.Chat(context.Background(), &sealedchat.ChatRequest{
		Model:    "demo",
		Messages: []sealedchat.Message{sealedchat.UserMessage("Hello?")},
	})
	var wrong *sealedchat.ServerKeyError
	if errors.As(err, &wrong) {
		fmt.Println("the server has another key")
	}
	// Output: the server has another key
}

// The raw request and the raw answer stay in protected memory.
func ExampleSecureCompletionClient_Complete() {
	url, pin, transport, stop := startServer()
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{BaseURL: url,
		Trust: sealedchat.Pin(pin), Transport: transport})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	body := sealedchat.NewSecret(
		[]byte(`{"model":"demo","messages":[{"role":"user","content":"What is the capital of France?"}]}`))
	defer body.Destroy()
	response, err := client.Complete(context.Background(), body)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Destroy()
	_ = response.Body.Use(func(b []byte) error {
		fmt.Println(strings.Contains(string(b), "Paris."))
		return nil
	})
	// Output: true
}

// This is the README's client: compiled, and not run, since it wants a server.
func ExampleNewSecureCompletionClient() {
	ctx := context.Background()
	key := sealedchat.NewSecret([]byte(os.Getenv("NOMYO_API_KEY")))
	defer key.Destroy()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "https://inference.example.com",
		APIKey:  key,
		Trust:   sealedchat.Pin("cb27375fe715067b0b865fa551e9849e2f20e7586aad65fd9733e96e32c8296c"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	answer, err := client.Chat(ctx, &sealedchat.ChatRequest{
		Model:    "Qwen/Qwen3-0.6B",
		Messages: []sealedchat.Message{sealedchat.UserMessage("What is the capital of France?")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text())
}

// The environment has no variable for the protocol: a program that speaks Oblivious HTTP says so
// itself.
func ExampleConfigFromEnv() {
	for name, value := range map[string]string{
		"NOMYO_SERVER_URL": "https://inference.example.com",
		"NOMYO_API_KEY":    "an-api-key",
		"NOMYO_SERVER_PIN": "cb27375fe715067b0b865fa551e9849e2f20e7586aad65fd9733e96e32c8296c",
	} {
		defer os.Unsetenv(name)
		if err := os.Setenv(name, value); err != nil {
			log.Fatal(err)
		}
	}

	config, err := sealedchat.ConfigFromEnv(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer config.APIKey.Destroy()
	config.Protocol = sealedchat.ProtocolOHTTP
	client, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(config.BaseURL, config.Protocol, config.APIKey)
	// Output: https://inference.example.com ohttp [REDACTED]
}

// This is the README's key store: compiled, and not run.
func ExampleOpenKeyStore() {
	ctx := context.Background()
	passphrase := sealedchat.NewSecret([]byte(os.Getenv("NOMYO_KEY_PASSWORD")))
	defer passphrase.Destroy()
	// CreateKeyStore makes it, once
	store, err := sealedchat.OpenKeyStore(ctx, "/var/lib/myservice/keys", passphrase, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "https://inference.example.com",
		Keys:    store,
		Trust:   sealedchat.FirstUse(store), // the first key is remembered; another one is refused
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

// This is the audit log of docs/audit-log.md: compiled, and not run.
func ExampleOpenAuditLog() {
	ctx := context.Background()
	passphrase := sealedchat.NewSecret([]byte(os.Getenv("NOMYO_KEY_PASSWORD")))
	defer passphrase.Destroy()
	store, err := sealedchat.OpenKeyStore(ctx, "/var/lib/myservice/keys", passphrase, nil)
	if err != nil {
		log.Fatal(err)
	}
	audit, err := sealedchat.OpenAuditLog(ctx, "/var/lib/myservice/log/audit.log", store, nil)
	if err != nil {
		log.Fatal(err)
	}
	// Deferred calls run in reverse: clients and gateways first, then the store, then the log.
	defer audit.Close()
	defer store.Close()
	err = store.SetAuditor(ctx, audit.Record) // and Config.Audit, GatewayConfig.Audit
	if err != nil {
		log.Fatal(err)
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		Keys: store, Trust: sealedchat.FirstUse(store), Audit: audit.Record,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(audit.Head()) // to be kept elsewhere
}

// An Auditor of a program's own adds details, and hands the event on. Values under names like
// "token" are redacted.
func ExampleAuditor() {
	plain := func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case "time", "event_time", "user", "pid", "severity":
			return slog.Attr{}
		}
		return a
	}
	next := sealedchat.NewSlogAuditor(slog.New(slog.NewTextHandler(os.Stdout,
		&slog.HandlerOptions{ReplaceAttr: plain})))
	var auditor sealedchat.Auditor = func(ctx context.Context, e sealedchat.Event) error {
		e.Details = map[string]any{"tenant": "a-17", "session_token": "eyJhbGciOi"}
		return next(ctx, e)
	}
	_ = auditor(context.Background(), sealedchat.Event{Type: sealedchat.EventKeyDeleted,
		Fingerprint: "cb27375f…"})
	// Output: level=WARN msg=audit type=key_deleted fingerprint=cb27375f… details="map[session_token:[REDACTED] tenant:a-17]"
}

// This is the README's gateway: compiled, and not run.
func ExampleNewGateway() {
	key := sealedchat.NewSecret([]byte(os.Getenv("NOMYO_API_KEY")))
	auth, err := sealedchat.AuthenticateKeys(key)
	if err != nil {
		log.Fatal(err)
	}
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream:     "http://127.0.0.1:8000/v1",
		Authenticate: auth,
	})
	if err != nil {
		log.Fatal(err)
	}
	server := gateway.Server(":8443")
	err = server.ListenAndServeTLS("cert.pem", "key.pem")
	log.Fatal(err)
}

// How to test your own service offline, with the real protocol.
func ExampleGateway() {
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"id":"1","object":"chat.completion","created":1,"model":"m",
			"choices":[{"message":{"content":"Paris."}}]}`)
	}))
	defer model.Close()
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: model.URL + "/v1", AllowUnauthenticated: true, Keys: keys,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer gateway.Close()
	server := httptest.NewTLSServer(gateway)
	defer server.Close()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: server.URL, Trust: sealedchat.TrustHTTPS(),
		Transport: server.Client().Transport, Keys: keys,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	answer, err := client.Chat(context.Background(), &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{
			sealedchat.UserMessage("What is the capital of France?")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text())
	// Output: Paris.
}

// Counters for a log line or a metrics endpoint.
func ExampleSecureCompletionClient_Stats() {
	url, pin, transport, stop := startServer()
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{BaseURL: url,
		Trust: sealedchat.Pin(pin), Transport: transport})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	_, err = client.Chat(context.Background(), &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{
			sealedchat.UserMessage("What is the capital of France?")},
	})
	if err != nil {
		log.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	logger.Info("sealedchat", "stats", client.Stats())
	stats := client.Stats()
	fmt.Println(stats.Requests, stats.Failures, stats.Retries, stats.InFlight)
	// Output: 1 0 0 0
}

// Data at rest, sealed under a key of the store. The label is authenticated, not stored.
func ExampleKeyStore_Seal() {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	passphrase := sealedchat.NewSecret([]byte("correct horse battery"))
	defer passphrase.Destroy()
	keys, err := sealedchat.CreateKeyStore(context.Background(), dir+"/store", passphrase,
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	sealed, err := keys.Seal("notes/1", []byte("for nobody else"))
	if err != nil {
		log.Fatal(err)
	}
	plain, err := keys.Open("notes/1", sealed)
	fmt.Println(string(plain), err)
	_, err = keys.Open("notes/2", sealed)
	fmt.Println(errors.Is(err, sealedchat.ErrDecryption))
	// Output:
	// for nobody else <nil>
	// true
}

// A secret prints as nothing, and is lent out, not given away.
func ExampleSecret() {
	secret := sealedchat.NewSecret([]byte("hunter22"))
	fmt.Println(secret, secret.Len())
	_ = secret.Use(func(b []byte) error {
		fmt.Println(string(b[:6]))
		return nil
	})
	secret.Destroy()
	fmt.Println(errors.Is(secret.Use(func([]byte) error { return nil }), sealedchat.ErrClosed))
	// Output:
	// [REDACTED] 8
	// hunter
	// true
}

// Where keys are mounted read-only, as Kubernetes mounts secrets.
func ExampleKeyStore_ImportPEM() {
	ctx := context.Background()
	text, err := os.ReadFile("testdata/keys/rsa-2048.pem")
	if err != nil {
		log.Fatal(err)
	}
	var passphrase *sealedchat.Secret // nil: the file is not encrypted
	keys, err := sealedchat.NewEphemeralKeyStore(
		&sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	_, err = keys.ImportPEM(ctx, text, passphrase)
	clear(text)
	if err != nil {
		log.Fatal(err)
	}
	for _, k := range keys.Keys() {
		fmt.Println(k.Kind, k.Bits)
	}
	// Output: RSA 2048
}

// A secret in a file, as Kubernetes and systemd mount them. Editors and echo end it in a line
// break, which is none of the key's.
func ExampleReadSecret() {
	key, err := sealedchat.ReadSecret("/run/secrets/api-key") // without its final line break
	if err != nil {
		log.Fatal(err)
	}
	defer key.Destroy()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "https://inference.example.com",
		APIKey:  key,
		Trust:   sealedchat.TrustHTTPS(),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}
