// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// The server's certificate comes from a private authority, or is self-made.
func ExampleDefaultTransport() {
	text, err := os.ReadFile("/etc/myservice/ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) { // of the authority, or of the self-made certificate itself
		log.Fatal("no certificate")
	}
	transport := sealedchat.DefaultTransport()
	transport.TLSClientConfig.RootCAs = roots
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL:   "https://inference.example.com",
		Trust:     sealedchat.TrustHTTPS(),
		Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

// A gateway's keys: a new one each week, and the old one opens requests for two hours more. Clients
// of protocol v1 that pinned the key have to be told before.
func ExampleRotation() {
	ctx := context.Background()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{
		Bits:     2048, // quick to make; 0 = 4096
		Rotation: sealedchat.Rotation{Every: 7 * 24 * time.Hour, Grace: 2 * time.Hour},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	before, err := keys.Public(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := keys.Rotate(ctx); err != nil { // now, whatever the age
		log.Fatal(err)
	}
	for _, k := range keys.Keys() {
		fmt.Println(k.Kind, k.Bits, k.Retired.IsZero(), k.Fingerprint == before.Fingerprint())
	}
	fmt.Println(keys.RotationError()) // of the work in the background: for a health check
	// Output:
	// RSA 2048 true false
	// RSA 2048 false true
	// <nil>
}

// A program that would rather know than have its key swapped out asks for locked memory, and may
// still decide otherwise.
func ExampleMemoryPolicy() {
	logger := slog.New(slog.DiscardHandler) // the program's own
	text := []byte("an-api-key")
	key, err := sealedchat.MemoryRequired.NewSecret(text)
	if errors.Is(err, sealedchat.ErrMemoryLimit) {
		logger.Warn("raise ulimit -l", "error", err)           // with the figures
		key, err = sealedchat.MemoryBestEffort.NewSecret(text) // which NewSecret does as well
	}
	if err != nil {
		log.Fatal(err)
	}
	defer key.Destroy()
	fmt.Println(key.Len(), text[0]) // text is wiped
	// Output: 10 0
}

// What a service tells of itself when it starts.
func ExampleMemoryReport() {
	logger := slog.New(slog.DiscardHandler) // the service's own
	key := sealedchat.NewSecret([]byte("an-api-key"))
	defer key.Destroy()

	report := sealedchat.MemoryReport()
	if !report.AllLocked {
		logger.Warn("secrets may be swapped out", "unlocked", report.Unlocked, "in_use",
			report.InUse)
	}
	if report.Leaked > 0 {
		logger.Error("secrets were never destroyed", "secrets", report.Leaked)
	}
	fmt.Println(report.InUse >= int64(key.Len()))
	// Output: true
}

// A program that is told to stop (SIGINT, SIGTERM) closes what it has, and ends when that is done.
// A second signal ends it at once, since AfterFunc has given the signals back by then.
func ExampleKeyStore_Close() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keys, err := sealedchat.NewEphemeralKeyStore(nil)
	if err != nil {
		log.Fatal(err)
	}
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { stop(); keys.Close(); close(closed) })

	stop() // in place of a signal
	<-closed
	fmt.Println("closed")
	// Output: closed
}

// The server's key has changed. What to do is a person's decision: nothing is sent until somebody
// has asked the operator, by another way than this connection.
func ExampleSecureCompletionClient_AcceptServerKey() {
	ctx := context.Background()
	serverKeys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048,
		Rotation: sealedchat.Rotation{Grace: -1}})
	if err != nil {
		log.Fatal(err)
	}
	defer serverKeys.Close()
	url, _, transport, stop := startGateway(paris,
		sealedchat.GatewayConfig{AllowUnauthenticated: true, Keys: serverKeys})
	defer stop()

	// a service opens one on disk
	store, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Keys: store, Trust: sealedchat.FirstUse(store), Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	question := &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{
			sealedchat.UserMessage("What is the capital of France?")},
	}
	_, err = client.Chat(ctx, question)
	fmt.Println("first use:", err)

	if err := serverKeys.Rotate(ctx); err != nil { // at the operator's
		log.Fatal(err)
	}
	announced, err := serverKeys.Public(ctx) // and told to the users, on paper for example
	if err != nil {
		log.Fatal(err)
	}

	_, err = client.Chat(ctx, question)
	var changed *sealedchat.ServerKeyError
	if !errors.As(err, &changed) {
		log.Fatal(err)
	}
	fmt.Println("the key has changed, nothing was sent")
	if changed.Got != announced.Fingerprint() {
		log.Fatal("somebody is in between")
	}
	if err := client.AcceptServerKey(changed.Got); err != nil {
		log.Fatal(err)
	}
	answer, err := client.Chat(ctx, question)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text())
	// Output:
	// first use: <nil>
	// the key has changed, nothing was sent
	// Paris.
}

// Whatever Config.Trust says, OnServerKey has the last word on a key that was not used before.
func ExampleConfig_onServerKey() {
	ctx := context.Background()
	url, _, transport, stop := startServer()
	defer stop()
	confirmed := make(map[string]bool) // what the operator has told
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Trust: sealedchat.TrustHTTPS(), Transport: transport,
		OnServerKey: func(_, new *sealedchat.PublicKey) error {
			if !confirmed[new.Fingerprint()] {
				return errors.New("not confirmed by the operator")
			}
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	_, err = client.ServerKey(ctx)
	var refused *sealedchat.ServerKeyError
	if errors.As(err, &refused) {
		fmt.Println("refused:", refused.Err)
		confirmed[refused.Got] = true // once somebody has asked
	}
	_, err = client.ServerKey(ctx)
	fmt.Println("asked again:", err)
	// Output:
	// refused: not confirmed by the operator
	// asked again: <nil>
}

// With Oblivious HTTP, clients pin who signs the gateway's keys: the keys may be replaced, and the
// pin stays.
func ExampleGateway_Keys() {
	ctx := context.Background()
	// a gateway opens one on disk: the signer lies there, too
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: "http://127.0.0.1:8000/v1", AllowUnauthenticated: true, Keys: keys,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer gateway.Close()
	server := httptest.NewTLSServer(gateway)
	defer server.Close()
	known, err := gateway.Keys(ctx)
	if err != nil {
		log.Fatal(err)
	}
	signer := slices.IndexFunc(known, func(k sealedchat.KeyInfo) bool {
		return k.Kind == "Ed25519"
	})
	pin := known[signer].Fingerprint // to be told to the users

	seen := make(map[string]bool)
	for range 2 {
		client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
			BaseURL: server.URL, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.Pin(pin),
			Transport: server.Client().Transport,
		})
		if err != nil {
			log.Fatal(err)
		}
		defer client.Close()
		key, err := client.ServerKey(ctx)
		if err != nil {
			log.Fatal(err)
		}
		seen[key.Fingerprint()] = true
		fmt.Println(key.Signer() == pin, len(seen))
		if err := keys.Rotate(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// true 1
	// true 2
}

// weatherModel asks for the weather, and then tells it; in pieces if it is to stream.
func weatherModel(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var request struct{ Stream bool }
	_ = json.Unmarshal(body, &request)
	switch {
	case request.Stream:
		w.Header().Set("Content-Type", "text/event-stream")
		for _, delta := range []string{
			`{"role":"assistant","tool_calls":[{"index":0,"id":"call-1","type":"function","function":{"name":"weather","arguments":""}}]}`,
			`{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]}`,
			`{"tool_calls":[{"index":0,"function":{"arguments":"\"Paris\"}"}}]}`,
		} {
			_, _ = io.WriteString(w,
				`data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"demo","choices":[{"index":0,"delta":`+delta+"}]}\n\n")
		}
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	case strings.Contains(string(body), `"role":"tool"`):
		_, _ = io.WriteString(w, `{"id":"2","object":"chat.completion","created":1,"model":"demo","choices":[
			{"index":0,"message":{"role":"assistant","content":"It rains in Paris."},"finish_reason":"stop"}]}`)
	default:
		_, _ = io.WriteString(w, `{"id":"1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,"finish_reason":"tool_calls",
			"message":{"role":"assistant","content":null,"tool_calls":[{"id":"call-1","type":"function",
			"function":{"name":"weather","arguments":"{\"city\":\"Paris\"}"}}]}}]}`)
	}
}

// The model has a function called, and answers with its result.
func ExampleFunctionTool() {
	url, _, transport, stop := startGateway(weatherModel,
		sealedchat.GatewayConfig{AllowUnauthenticated: true})
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(),
		Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	schema := json.RawMessage(
		`{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}`)
	request := &sealedchat.ChatRequest{
		Model:    "demo",
		Messages: []sealedchat.Message{sealedchat.UserMessage("How is the weather in Paris?")},
		Tools: []sealedchat.Tool{sealedchat.FunctionTool("weather", "The weather in a city now",
			schema)},
	}
	for range 5 { // however often the model asks
		answer, err := client.Chat(context.Background(), request)
		if err != nil {
			log.Fatal(err)
		}
		if len(answer.Choices) == 0 || len(answer.Choices[0].Message.ToolCalls) == 0 {
			fmt.Println(answer.Text())
			return
		}
		message := answer.Choices[0].Message
		request.Messages = append(request.Messages, message)
		for _, call := range message.ToolCalls {
			var arguments struct{ City string }
			// the model wrote it
			if err := json.Unmarshal([]byte(call.Function.Arguments), &arguments); err != nil {
				log.Fatal(err)
			}
			fmt.Println(call.Function.Name, arguments.City)
			request.Messages = append(request.Messages, sealedchat.ToolMessage(call.ID, "rain"))
		}
	}
	// Output:
	// weather Paris
	// It rains in Paris.
}

// A stream is shown as it comes, and is a complete answer at its end, tool calls too.
func ExampleChatAccumulator() {
	url, _, transport, stop := startGateway(weatherModel,
		sealedchat.GatewayConfig{AllowUnauthenticated: true})
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(),
		Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	var whole sealedchat.ChatAccumulator
	for chunk, err := range client.Stream(context.Background(), &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{
			sealedchat.UserMessage("How is the weather in Paris?")},
	}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text()) // what there is of text
		whole.Add(chunk)
	}
	for _, call := range whole.Response().Choices[0].Message.ToolCalls {
		fmt.Println(call.ID, call.Function.Name, call.Function.Arguments)
	}
	// Output: call-1 weather {"city":"Paris"}
}

// Two keys are good at the same time, so that clients can change from one to the other.
func ExampleAuthenticateKeys() {
	var keys []*sealedchat.Secret
	for _, text := range []string{"key-of-may", "key-of-june"} { // a service reads them from a file
		key := sealedchat.NewSecret([]byte(text))
		defer key.Destroy()
		keys = append(keys, key)
	}
	auth, err := sealedchat.AuthenticateKeys(keys...) // for GatewayConfig.Authenticate
	if err != nil {
		log.Fatal(err)
	}

	for _, token := range []string{"key-of-april", "key-of-may", "key-of-june"} {
		r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		account, err := auth(r)
		fmt.Printf("%s: %q, %v\n", token, account, err)
	}
	// Output:
	// key-of-april: "", sealedchat: authentication failed
	// key-of-may: "key-1", <nil>
	// key-of-june: "key-2", <nil>
}

// A check of one's own decides the status: here nobody may ask more than once. It sees the headers
// alone, in both protocols.
func ExampleGatewayConfig_authenticate() {
	asked := make(chan struct{}, 1)
	url, _, transport, stop := startGateway(paris, sealedchat.GatewayConfig{
		Authenticate: func(r *http.Request) (account string, err error) {
			if r.Header.Get("Authorization") != "Bearer an-api-key" { // better: AuthenticateKeys
				return "", sealedchat.ErrAuthentication // 401
			}
			select {
			case asked <- struct{}{}:
				return "team-paris", nil
			default:
				return "", &sealedchat.APIError{StatusCode: http.StatusTooManyRequests,
					RetryAfter: 5 * time.Minute}
			}
		},
	})
	defer stop()
	key := sealedchat.NewSecret([]byte("an-api-key"))
	defer key.Destroy()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(),
		Transport: transport, APIKey: key,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for range 2 {
		_, err = client.Chat(context.Background(), &sealedchat.ChatRequest{
			Model: "demo", Messages: []sealedchat.Message{
				sealedchat.UserMessage("What is the capital of France?")},
		})
		var refused *sealedchat.APIError
		// of more than a minute, so that the client does not wait by itself
		if errors.As(err, &refused) {
			fmt.Println(errors.Is(err, sealedchat.ErrRateLimited), refused.RetryAfter)
		}
	}
	// Output: true 5m0s
}
