// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"crypto/tls"

	"github.com/seed-017344ad/sealedchat"
)

// counts are the connections and requests that the gateway has had since it started.
type counts struct{ Connections, Fetches, Chats int64 }

// serveGateway serves every client over https, HTTP/2 and 1.1. Its upstream stands in for a model,
// and answers with as much text as the prompt has. It writes its certificate into dir, prints its
// address, and ends when its standard input ends. GET /counts over plain http on a second port
// returns the counts.
func serveGateway(dir string) error {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(upstream, http.HandlerFunc(answerInKind))
	keys, err := sealedchat.NewEphemeralKeyStore(
		&sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}})
	if err != nil {
		return err
	}
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: "http://" + upstream.Addr().String() + "/v1", AllowUnauthenticated: true,
		Keys:  keys,
		OHTTP: sealedchat.GatewayOHTTP{StrangerRate: -1},
	})
	if err != nil {
		return err
	}
	if _, err := keys.Public(context.Background()); err != nil {
		return err
	}
	var connections, fetches, chats atomic.Int64
	server := gateway.Server("")
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fetches.Add(1)
		} else {
			chats.Add(1)
		}
		gateway.ServeHTTP(w, r)
	})
	server.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	if server.TLSConfig, err = selfSigned(filepath.Join(dir, "gateway.pem")); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go server.ServeTLS(listener, "", "")
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(control, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(counts{connections.Load(), fetches.Load(), chats.Load()})
	}))
	fmt.Printf("https://%s http://%s\n", listener.Addr(), control.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

func answerInKind(w http.ResponseWriter, r *http.Request) {
	var request chatRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Messages) == 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1765250382,
		"model": request.Model,
		"choices": []any{map[string]any{"index": 0, "message": request.Messages[0],
			"finish_reason": "stop"}},
	})
}

func selfSigned(file string) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der},
		PrivateKey: key}}}, os.WriteFile(file, text, 0o644)
}
