// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command consumer uses the package as the service of a user would: it runs a gateway and a client,
// and asks one question. CI builds and runs it in a module of its own, so that code that works only
// inside this module does not pass.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

func main() {
	answer, err := run(context.Background(), "What is the capital of France?")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer)
}

// model answers every question with Paris.
func model(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, `{"id":"1","object":"chat.completion",
		"created":1765250382,"model":"demo",
		"choices":[{"index":0,"message":{"role":"assistant","content":"Paris."},
		"finish_reason":"stop"}]}`)
}

func run(ctx context.Context, question string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	upstream := httptest.NewServer(http.HandlerFunc(model))
	defer upstream.Close()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		return "", err
	}
	defer keys.Close()
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: upstream.URL + "/v1", AllowUnauthenticated: true, Keys: keys,
	})
	if err != nil {
		return "", err
	}
	defer gateway.Close()
	server := httptest.NewTLSServer(gateway)
	defer server.Close()
	key, err := keys.Public(ctx)
	if err != nil {
		return "", err
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: server.URL, Trust: sealedchat.Pin(key.Fingerprint()), Keys: keys,
		Transport: server.Client().Transport,
	})
	if err != nil {
		return "", err
	}
	defer client.Close()
	answer, err := client.Chat(ctx, &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{sealedchat.UserMessage(question)},
	})
	if err != nil {
		return "", err
	}
	return answer.Text(), nil
}
