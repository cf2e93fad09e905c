// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"time"
)

// identity is the certificate that the gateway shows in TLS.
type identity struct {
	certificate tls.Certificate
	selfSigned  bool
	note        string // for the user
}

// identity loads the certificate of the options, or makes one.
func (o *options) identity() (*identity, error) {
	if o.tlsCert != "" {
		certificate, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, wrongInput("-tls-cert, -tls-key: %w", err)
		}
		return &identity{certificate: certificate}, nil
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, err
	}
	certificate, err := selfSigned(host, 365*24*time.Hour)
	if err != nil {
		return nil, err
	}
	id := &identity{certificate: certificate, selfSigned: true, note: " (self-signed, made now)"}
	if o.writeCert != "" {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: certificate.Certificate[0]})
		// public: others may read it
		if err := os.WriteFile(o.writeCert, text, 0o644); err != nil {
			return nil, wrongInput("-write-cert: %w", err)
		}
		id.note = " (self-signed, made now, saved in " + oneLine(o.writeCert) + ")"
	}
	return id, nil
}

func (id *identity) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{id.certificate}}
}

func (id *identity) fingerprint() string {
	sum := sha256.Sum256(id.certificate.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// selfSigned makes a certificate for loopback and for the host that the gateway listens on. If it
// listens on every address, the certificate is also for the name of this machine.
func selfSigned(host string, life time.Duration) (tls.Certificate, error) {
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
		Subject:      pkix.Name{CommonName: "sealedchat gateway"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	ip := net.ParseIP(host)
	switch {
	case host == "", ip != nil && ip.IsUnspecified():
		if name, err := os.Hostname(); err == nil && name != "localhost" {
			template.DNSNames = append(template.DNSNames, name)
		}
	case ip != nil:
		template.IPAddresses = append(template.IPAddresses, ip)
	case host != "localhost":
		template.DNSNames = append(template.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
