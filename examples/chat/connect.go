// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/demo"
)

// connect makes the client, for a server and for the demo. It sends nothing yet. done closes
// everything that it made.
func (p *chat) connect(o *options, apiKey *sealedchat.Secret,
	keys *sealedchat.KeyStore) (_ *sealedchat.SecureCompletionClient, done func(), err error) {
	config, transport := o.server.Config(p.stderr)
	config.Keys, config.APIKey, config.MaxRetries = keys, apiKey, p.maxRetries
	if o.showWire {
		config.Transport = &wire{next: transport, out: p.stderr}
	}
	client, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		return nil, nil, err
	}
	return client, func() {
		_ = client.Close()
		transport.CloseIdleConnections()
	}, nil
}

// startDemo starts the demo. Meanwhile clientKeys generates its key, if the protocol needs one.
func (p *chat) startDemo(ctx context.Context, o *options,
	clientKeys *sealedchat.KeyStore) (*demo.Demo, error) {
	if o.server.Protocol == sealedchat.ProtocolOHTTP {
		return demo.Start(ctx, o.server.Protocol, p.keyBits, p.stderr)
	}
	defer p.while("making two RSA keys, which takes a few seconds at most …")()
	var client sync.WaitGroup
	defer client.Wait()
	// the error occurs again when the key is needed
	client.Go(func() { _, _ = clientKeys.Public(ctx) })
	return demo.Start(ctx, o.server.Protocol, p.keyBits, p.stderr)
}
