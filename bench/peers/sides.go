// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"

	"github.com/cloudflare/circl/hpke"
	"github.com/openpcc/ohttp"

	"github.com/seed-017344ad/sealedchat"
)

// side is a client, and the gateway that it asks over https. All sides are in this process, and
// have the same upstream and the same settings of net/http.
type side struct {
	name   string
	client *http.Client // as an SDK uses it
	url    string       // of chat completions
	close  func()
}

// The names of the sides.
const (
	plain   = "plain"   // httputil.ReverseProxy, nothing sealed
	openpcc = "openpcc" // github.com/openpcc/ohttp
	here    = "here"    // this package, with X-Wing
)

const chatPath = "/v1/chat/completions"

// sideMakers make the sides, in the order of the table.
var sideMakers = []struct {
	name string
	make func(dir, upstream string) (*side, error)
}{{plain, newPlain}, {openpcc, newOpenPCC}, {here, newHere}}

func newPlain(dir, upstream string) (*side, error) {
	handler, err := reverseProxy(upstream)
	if err != nil {
		return nil, err
	}
	base, transport, stop, err := overTLS(dir, &http.Server{Handler: handler})
	if err != nil {
		return nil, err
	}
	return &side{plain, &http.Client{Transport: transport}, base + chatPath, stop}, nil
}

// newOpenPCC uses X25519 and the defaults of openpcc/ohttp: it seals what has a length as one
// message, and everything else in chunks. Its gateway takes any target that is listed, which here
// is a host that does not exist.
func newOpenPCC(dir, upstream string) (*side, error) {
	kem := hpke.KEM_X25519_HKDF_SHA256
	public, private, err := kem.Scheme().GenerateKeyPair()
	if err != nil {
		return nil, err
	}
	key := ohttp.KeyPair{SecretKey: private, KeyConfig: ohttp.KeyConfig{
		KeyID: 1, KemID: kem, PublicKey: public,
		SymmetricAlgorithms: []ohttp.SymmetricAlgorithm{{KDFID: hpke.KDF_HKDF_SHA256,
			AEADID: hpke.AEAD_AES256GCM}},
	}}
	gateway, err := ohttp.NewGateway(key)
	if err != nil {
		return nil, err
	}
	proxy, err := reverseProxy(upstream)
	if err != nil {
		return nil, err
	}
	// its middleware writes a line for each request
	slog.SetDefault(slog.New(slog.DiscardHandler))
	base, transport, stop, err := overTLS(dir, &http.Server{
		Handler: ohttp.Middleware(gateway, proxy)})
	if err != nil {
		return nil, err
	}
	sealing, err := ohttp.NewTransport(key.KeyConfig, base,
		ohttp.WithHTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		stop()
		return nil, err
	}
	return &side{openpcc, &http.Client{Transport: sealing},
		"https://" + ohttp.DefaultAllowedHostname + chatPath, stop}, nil
}

func newHere(dir, upstream string) (*side, error) {
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: upstream + "/v1", AllowUnauthenticated: true, MaxConcurrent: 2 * openStreams,
		Protocols: []sealedchat.Protocol{sealedchat.ProtocolOHTTP},
		OHTTP:     sealedchat.GatewayOHTTP{StrangerRate: -1},
	})
	if err != nil {
		return nil, err
	}
	base, transport, stop, err := overTLS(dir, gateway.Server(""))
	if err != nil {
		return nil, errors.Join(err, gateway.Close())
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: base, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(),
		Transport: transport,
	})
	if err != nil {
		stop()
		return nil, errors.Join(err, gateway.Close())
	}
	return &side{here, client.HTTPClient(), base + chatPath, func() {
		_ = client.Close()
		stop()
		_ = gateway.Close()
	}}, nil
}

// reverseProxy keeps as many connections to the upstream as there are chats at a time: with
// net/http's default of two, it would make new ones all the time.
func reverseProxy(upstream string) (http.Handler, error) {
	target, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
	}, nil
}

// overTLS serves on loopback with a certificate of its own, and returns a transport that trusts it.
func overTLS(dir string, server *http.Server) (base string, transport *http.Transport, stop func(),
	err error) {
	file := filepath.Join(dir, "side.pem")
	if server.TLSConfig, err = selfSigned(file); err != nil {
		return "", nil, nil, err
	}
	if transport, err = trusting(file); err != nil {
		return "", nil, nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, nil, err
	}
	go server.ServeTLS(listener, "", "")
	return "https://" + listener.Addr().String(), transport, func() {
		transport.CloseIdleConnections()
		_ = server.Close()
	}, nil
}
