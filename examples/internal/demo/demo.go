// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package demo is a server inside a program: a gateway behind TLS on loopback, whose upstream is a
// tiny model that only repeats. Programs start it if no server was named, so that they can be tried
// at once.
package demo

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// Demo is a running demo.
type Demo struct {
	URL    string
	Pin    string // the key of its gateway
	APIKey string // that its gateway takes
	Roots  *x509.CertPool

	gateway *sealedchat.Gateway
	keys    *sealedchat.KeyStore
	http    *http.Server
	serving sync.WaitGroup
}

// Start starts a demo that speaks one protocol. bits is the size of its RSA key, if the protocol
// needs one; 0 means the package's default. It says on w what it is.
func Start(ctx context.Context, protocol sealedchat.Protocol, bits int, w io.Writer) (_ *Demo,
	err error) {
	fmt.Fprintln(w,
		"demo: no -url was given, so a gateway and a tiny model run inside this program")
	fmt.Fprintln(w, "demo: No model was downloaded; the tiny one only repeats")
	d := &Demo{APIKey: rand.Text()}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.keys, err = sealedchat.NewEphemeralKeyStore(
		&sealedchat.KeyStoreOptions{Bits: bits}); err != nil {
		return nil, err
	}
	if d.gateway, err = newGateway(d.keys, d.APIKey, protocol); err != nil {
		return nil, err
	}
	keys, err := d.gateway.Keys(ctx)
	if err != nil {
		return nil, err
	}
	d.Pin = program.Pins(keys)[protocol]
	if err := d.listen(ctx); err != nil {
		return nil, fmt.Errorf("starting the demo: %w", err)
	}
	fmt.Fprintf(w, "demo: the gateway is %s, and its key is pinned:\n", d.URL)
	fmt.Fprintf(w, "demo: %s\n", program.PinLine(protocol, d.Pin))
	return d, nil
}

func newGateway(keys *sealedchat.KeyStore, apiKey string,
	protocol sealedchat.Protocol) (*sealedchat.Gateway, error) {
	secret := sealedchat.NewSecret([]byte(apiKey))
	defer secret.Destroy() // AuthenticateKeys keeps a digest
	authenticate, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		return nil, err
	}
	return sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream:          "https://demo.invalid/v1",
		UpstreamTransport: InMemory(http.HandlerFunc(Model)),
		Authenticate:      authenticate,
		Keys:              keys,
		Tier:              sealedchat.TierMaximum,
		Protocols:         []sealedchat.Protocol{protocol},
	})
}

func (d *Demo) listen(ctx context.Context) error {
	certificate, err := program.SelfSigned("sealedchat demo", "localhost", 365*24*time.Hour)
	if err != nil {
		return err
	}
	d.Roots = x509.NewCertPool()
	d.Roots.AddCert(certificate.Leaf)
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.URL = "https://" + listener.Addr().String()
	d.http = d.gateway.Server("")
	d.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate}}
	d.serving.Go(func() { _ = d.http.ServeTLS(listener, "", "") }) // until Close
	return nil
}

// Server is d as a program's -url would name it.
func (d *Demo) Server(s program.Server) program.Server {
	s.URL, s.Pins, s.Roots = d.URL, program.List{d.Pin}, d.Roots
	return s
}

// Close ends the demo, even one that has only half started.
func (d *Demo) Close() {
	if d.http != nil {
		_ = d.http.Close()
		d.serving.Wait()
	}
	if d.gateway != nil {
		_ = d.gateway.Close()
	}
	if d.keys != nil {
		d.keys.Close()
	}
}
