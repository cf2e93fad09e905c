// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// Two keys are good at the same time, so that clients can change from one to the other.
func ExampleAuthenticateKeys() {
	var keys []*sealedchat.Secret
	for _, text := range []string{"key-of-may", "key-of-june"} { // a service reads them from a file
		key, err := sealedchat.NewSecret([]byte(text))
		if err != nil {
			log.Fatal(err)
		}
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

// A check of one's own decides the status: here nobody may ask more than once. It sees the headers alone, in both protocols.
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
				return "", &sealedchat.APIError{StatusCode: http.StatusTooManyRequests, RetryAfter: 5 * time.Minute}
			}
		},
	})
	defer stop()
	key, err := sealedchat.NewSecret([]byte("an-api-key"))
	if err != nil {
		log.Fatal(err)
	}
	defer key.Destroy()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(), Transport: transport, APIKey: key,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for range 2 {
		_, err = client.Chat(context.Background(), &sealedchat.ChatRequest{
			Model: "demo", Messages: []sealedchat.Message{sealedchat.UserMessage("What is the capital of France?")},
		})
		var refused *sealedchat.APIError
		if errors.As(err, &refused) { // of more than a minute, so that the client does not wait by itself
			fmt.Println(errors.Is(err, sealedchat.ErrRateLimited), refused.RetryAfter)
		}
	}
	// Output: true 5m0s
}
