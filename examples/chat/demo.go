// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// demo is a server inside this process: a gateway behind TLS on loopback, whose upstream is the
// demo model.
type demo struct {
	server
	gateway *sealedchat.Gateway
	keys    *sealedchat.KeyStore
	http    *http.Server
	serving sync.WaitGroup
}

// startDemo starts the demo. Meanwhile clientKeys generates its key, if the protocol needs one.
func (p *program) startDemo(ctx context.Context, o *options,
	clientKeys *sealedchat.KeyStore) (_ *demo, err error) {
	fmt.Fprintln(p.stderr,
		"demo: no -url was given, so a gateway and a tiny model run inside this program")
	fmt.Fprintln(p.stderr, "demo: No model was downloaded; the tiny one only repeats")
	d := &demo{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.keys, err = sealedchat.NewEphemeralKeyStore(
		&sealedchat.KeyStoreOptions{Bits: p.keyBits}); err != nil {
		return nil, err
	}
	d.server.key = rand.Text()
	if d.gateway, err = newDemoGateway(d.keys, d.server.key, o.protocol); err != nil {
		return nil, err
	}
	if err := p.makeDemoKeys(ctx, o, d, clientKeys); err != nil {
		return nil, err
	}
	if err := d.listen(ctx); err != nil {
		return nil, fmt.Errorf("starting the demo: %w", err)
	}
	return d, nil
}

// makeDemoKeys makes the key of the gateway, and pins it.
func (p *program) makeDemoKeys(ctx context.Context, o *options, d *demo,
	clientKeys *sealedchat.KeyStore) error {
	if o.protocol == sealedchat.ProtocolOHTTP {
		signer, err := d.keys.Signer(ctx) // it outlives the configurations that it signs
		d.pins = []string{signer}
		return err
	}
	defer p.while("making two RSA keys, which takes a few seconds at most …")()
	var client sync.WaitGroup
	// the error occurs again when the key is needed
	client.Go(func() { _, _ = clientKeys.Public(ctx) })
	keys, err := d.gateway.Keys(ctx)
	client.Wait()
	if err != nil {
		return err
	}
	d.pins = []string{keys[0].Fingerprint}
	return nil
}

func newDemoGateway(keys *sealedchat.KeyStore, apiKey string,
	protocol sealedchat.Protocol) (*sealedchat.Gateway, error) {
	secret := sealedchat.NewSecret([]byte(apiKey))
	defer secret.Destroy() // AuthenticateKeys keeps a digest
	authenticate, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		return nil, err
	}
	return sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream:          "https://demo.invalid/v1",
		UpstreamTransport: inMemory{http.HandlerFunc(demoModel)},
		Authenticate:      authenticate,
		Keys:              keys,
		Tier:              sealedchat.TierMaximum,
		Protocols:         []sealedchat.Protocol{protocol},
	})
}

func (d *demo) listen(ctx context.Context) error {
	certificate, err := selfSigned(24 * time.Hour)
	if err != nil {
		return err
	}
	d.roots = x509.NewCertPool()
	d.roots.AddCert(certificate.Leaf)
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.url = "https://" + listener.Addr().String()
	d.http = d.gateway.Server("")
	d.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate}}
	d.serving.Go(func() { _ = d.http.ServeTLS(listener, "", "") }) // until close
	return nil
}

// close ends the demo, even one that has only half started.
func (d *demo) close() {
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

// selfSigned makes a certificate for the loopback of this machine, and a key for it.
func selfSigned(life time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "sealedchat demo"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
