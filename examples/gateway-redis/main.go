// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command gateway-redis is one of several gateways that work as one: they share a key store, in a
// folder of their machine, and a memory of replays, in Redis. On several machines each has a copy
// of the folder, and -rotate is negative: docs/gateway-operations.md says why.
//
//	go run -C examples/keystore . create -dir /var/lib/sealedchat/keys
//	NOMYO_KEY_PASSWORD=… go run . -keys /var/lib/sealedchat/keys -redis redis://127.0.0.1:6379/0 \
//		-upstream http://127.0.0.1:8000/v1 -api-keys keys.txt -tls-cert cert.pem -tls-key key.pem
//
// It serves both protocols. Every -rotate one of the gateways replaces the keys; the others find
// the new keys in the store as soon as a request needs them. Without Redis every request is
// answered with 503 before anything of it goes upstream. As soon as Redis is back, requests are
// served again.
//
// Redis must have the settings appendonly yes and appendfsync always. Otherwise an attacker can
// capture a request and replay it after a restart of Redis. The program checks the settings at its
// start and every half a minute. It warns, or with -redis-durable refuses to serve.
//
// Behind a proxy give -plain-http, and -address-header with the header in which the proxy states
// the address of a client, X-Forwarded-For for example: the gateway limits by address how many
// requests it opens for clients that it does not know. Clients must not reach the gateway past the
// proxy.
//
// Environment: NOMYO_KEY_PASSWORD opens the key store, NOMYO_UPSTREAM_KEY is sent upstream as a
// bearer token; either may have _FILE behind its name, and name a file. Interrupt or SIGTERM ends
// it: running requests get half a minute. Exit status: 0 for success, 1 if it could not serve, 2
// for wrong flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed-017344ad/sealedchat"
)

type options struct {
	listen, tlsCert, tlsKey   string
	plain                     bool
	addressHeader             string
	durable                   bool
	upstream, keys, redis     string
	prefix                    string
	apiKeys                   string
	allowAll                  bool
	rotate, window, clockSkew time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:8443", "`address` to listen on")
	flag.StringVar(&o.tlsCert, "tls-cert", "", "`file` with the certificate chain")
	flag.StringVar(&o.tlsKey, "tls-key", "", "`file` with its private key")
	flag.BoolVar(&o.plain, "plain-http", false, "listen without TLS, behind a proxy that has it")
	flag.StringVar(&o.addressHeader, "address-header", "",
		"`header` in which the proxy says a client's address, last; without it all clients "+
			"behind a proxy share one limit")
	flag.StringVar(&o.upstream, "upstream", "", "base `URL` of the OpenAI-compatible server")
	flag.StringVar(&o.keys, "keys", "",
		"`folder` of the key store; make one with examples/keystore")
	flag.StringVar(&o.redis, "redis", "redis://127.0.0.1:6379/0",
		"`URL` of the Redis server; rediss:// for TLS")
	flag.BoolVar(&o.durable, "redis-durable", false,
		"refuse a Redis server without \"appendonly yes\" and \"appendfsync always\", which "+
			"forgets when it restarts")
	flag.StringVar(&o.prefix, "redis-prefix", "sealedchat:replay:", "what keys in Redis begin with")
	flag.StringVar(&o.apiKeys, "api-keys", "",
		"`file` with the API keys that are served, one on each line; # begins a comment line")
	flag.BoolVar(&o.allowAll, "allow-unauthenticated", false, "serve everybody")
	flag.DurationVar(&o.rotate, "rotate", 24*time.Hour,
		"age at which keys are replaced; negative = never")
	flag.DurationVar(&o.window, "date-window", 0, "how far a request's Date may be off; 0 = 2m")
	flag.DurationVar(&o.clockSkew, "clock-skew", time.Minute,
		"how far the gateways' clocks may differ")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, &o, flag.NArg()); err != nil {
		fmt.Fprintln(os.Stderr, "gateway-redis: "+err.Error())
		if _, ok := errors.AsType[usageError](err); ok {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

type usageError string

func (e usageError) Error() string { return string(e) }

func (o *options) check(arguments int) error {
	switch {
	case arguments > 0:
		return usageError("only flags are understood")
	case o.upstream == "" || o.keys == "":
		return usageError("-upstream and -keys are required")
	case (o.apiKeys == "") != o.allowAll:
		return usageError("give either -api-keys FILE or -allow-unauthenticated")
	case (o.tlsCert == "" || o.tlsKey == "") != o.plain:
		return usageError("give either -tls-cert and -tls-key, or -plain-http")
	case o.clockSkew < 0:
		return usageError("-clock-skew is negative")
	}
	return nil
}

func run(ctx context.Context, o *options, arguments int) error {
	if err := o.check(arguments); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	keys, err := o.openKeys(ctx, log)
	if err != nil {
		return err
	}
	defer keys.Close()
	redis.SetLogger(redisLog{log})
	client, err := connect(o.redis)
	if err != nil {
		return usageError("-redis: " + err.Error())
	}
	defer client.Close()
	cache := &replays{redis: client, prefix: o.prefix, margin: o.clockSkew}
	if err := cache.fit(ctx, o.durable, log); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		cache.watch(watching, 30*time.Second, o.durable, log)
	}()
	defer func() {
		stop()
		<-watched
	}()
	config := sealedchat.GatewayConfig{
		Upstream: o.upstream, Keys: keys, Logger: log, AllowUnauthenticated: o.allowAll,
		Replay: cache,
		OHTTP:  sealedchat.GatewayOHTTP{DateWindow: o.window},
	}
	switch {
	case o.addressHeader != "":
		config.AddressHeader = o.addressHeader
	case o.plain:
		log.Warn("-plain-http without -address-header: all clients behind the proxy share one " +
			"limit for strangers")
	}
	if o.apiKeys != "" {
		if config.Authenticate, err = readAPIKeys(o.apiKeys); err != nil {
			return err
		}
	}
	if config.UpstreamKey, err = secretOf("NOMYO_UPSTREAM_KEY"); err != nil {
		return err
	}
	defer config.UpstreamKey.Destroy()
	gateway, err := sealedchat.NewGateway(config)
	if err != nil {
		return err
	}
	defer gateway.Close()
	return o.serve(ctx, gateway, log)
}

// redisLog logs the messages of the Redis client about its connections.
type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.WarnContext(ctx, "redis", "says", fmt.Sprintf(format, v...))
}

// secretOf is the content of the file that a variable with _FILE names, or else of the variable
// itself; nil for neither.
func secretOf(variable string) (*sealedchat.Secret, error) {
	if file := os.Getenv(variable + "_FILE"); file != "" {
		return sealedchat.ReadSecret(file)
	}
	if text := os.Getenv(variable); text != "" {
		return sealedchat.NewSecret([]byte(text)), nil
	}
	return nil, nil
}

func (o *options) openKeys(ctx context.Context, log *slog.Logger) (*sealedchat.KeyStore, error) {
	passphrase, err := secretOf("NOMYO_KEY_PASSWORD")
	if err != nil {
		return nil, err
	}
	if passphrase == nil {
		return nil, usageError("NOMYO_KEY_PASSWORD is not set, nor NOMYO_KEY_PASSWORD_FILE")
	}
	defer passphrase.Destroy()
	return sealedchat.OpenKeyStore(ctx, o.keys, passphrase, &sealedchat.KeyStoreOptions{
		Rotation: sealedchat.Rotation{Every: o.rotate}, Logger: log,
	})
}

// serve prints its address and the pins for clients, and serves until ctx ends.
func (o *options) serve(ctx context.Context, gateway *sealedchat.Gateway, log *slog.Logger) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	keys, err := gateway.Keys(ctx)
	if err != nil {
		return err
	}
	server := gateway.Server("")
	failed := make(chan error, 1)
	go func() {
		if o.plain {
			failed <- server.Serve(listener)
		} else {
			failed <- server.ServeTLS(listener, o.tlsCert, o.tlsKey)
		}
	}()
	for _, k := range keys {
		switch {
		case !k.Retired.IsZero():
		case k.Kind == "RSA":
			fmt.Printf("pin (envelope): %s\n", k.Fingerprint)
		case k.Kind == "Ed25519": // it outlives the configurations that it signs
			fmt.Printf("pin (ohttp): %s\n", k.Fingerprint)
		}
	}
	fmt.Printf("listening: %s\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		_ = server.Close()
	}
	<-failed
	return nil
}
