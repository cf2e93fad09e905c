// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// identity is the certificate that the gateway shows in TLS. load may read it again while clients
// connect.
type identity struct {
	certFile, keyFile string // "" = self-signed
	note              string // for the user
	now               atomic.Pointer[tls.Certificate]
}

// newIdentity loads the certificate of the options, or makes one.
func newIdentity(o *options) (*identity, error) {
	id := &identity{certFile: o.tlsCert, keyFile: o.tlsKey}
	if id.certFile != "" {
		return id, id.load()
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, err
	}
	certificate, err := program.SelfSigned("sealedchat gateway", host, 365*24*time.Hour)
	if err != nil {
		return nil, err
	}
	id.now.Store(&certificate)
	id.note = " (self-signed, made now)"
	if o.writeCert == "" {
		return id, nil
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	if err := os.WriteFile(o.writeCert, text, 0o644); err != nil { // public: others may read it
		return nil, program.WrongInput("-write-cert: %w", err)
	}
	id.note = " (self-signed, made now, saved in " + program.OneLine(o.writeCert) + ")"
	return id, nil
}

// load reads the files, if there are any. After an error what was read before stays. Connections
// that are open go on.
func (id *identity) load() error {
	if id.certFile == "" {
		return nil
	}
	certificate, err := tls.LoadX509KeyPair(id.certFile, id.keyFile)
	if err != nil {
		return program.WrongInput("-tls-cert, -tls-key: %w", err)
	}
	id.now.Store(&certificate)
	return nil
}

func (id *identity) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.now.Load(), nil
		},
	}
}

func (id *identity) fingerprint() string {
	sum := sha256.Sum256(id.now.Load().Certificate[0])
	return hex.EncodeToString(sum[:])
}
