// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http/httptest"
	"slices"

	"github.com/seed-017344ad/sealedchat"
)

// The server's key has changed. What to do is a person's decision: nothing is sent until somebody has asked the operator,
// by another way than this connection.
func ExampleSecureCompletionClient_AcceptServerKey() {
	ctx := context.Background()
	serverKeys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048, Rotation: sealedchat.Rotation{Grace: -1}})
	if err != nil {
		log.Fatal(err)
	}
	defer serverKeys.Close()
	url, _, transport, stop := startGateway(paris, sealedchat.GatewayConfig{AllowUnauthenticated: true, Keys: serverKeys})
	defer stop()

	store, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048}) // a service opens one on disk
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
		Model: "demo", Messages: []sealedchat.Message{sealedchat.UserMessage("What is the capital of France?")},
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

// With Oblivious HTTP, clients pin who signs the gateway's keys: the keys may be replaced, and the pin stays.
func ExampleGateway_Keys() {
	ctx := context.Background()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048}) // a gateway opens one on disk: the signer lies there, too
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
	signer := slices.IndexFunc(known, func(k sealedchat.KeyInfo) bool { return k.Kind == "Ed25519" })
	pin := known[signer].Fingerprint // to be told to the users

	seen := make(map[string]bool)
	for range 2 {
		client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
			BaseURL: server.URL, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.Pin(pin), Transport: server.Client().Transport,
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
