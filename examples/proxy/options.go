// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"flag"
	"math"
	"net"
	"strings"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// options are the checked command line.
type options struct {
	server    program.Server
	listen    place
	hosts     []string // that may stand in the header Host, lower case, without a port
	models    []string // that GET /v1/models lists over v1
	keyFile   string   // with the API key; "" = the environment
	tokenFile string   // with the token; "" = the environment
	passKey   bool     // what clients send as their API key goes to the server
	maxBody   int64    // bytes
	attest    attestation
}

const (
	defaultListen  = "127.0.0.1:8484"
	defaultMaxBody = 10 << 20 // bytes, as in sealedchat.Config
	maxSecretFile  = 4096     // bytes
	minToken       = 16       // bytes
	tokenVariable  = "NOMYO_PROXY_TOKEN"
)

func usage() program.Usage {
	return program.Usage{
		Lines: []string{"proxy [flags]"},
		Variables: append(program.ServerVariables(),
			program.Variable{Name: tokenVariable, Text: "the token that clients must send"},
			program.Variable{Name: tokenVariable + "_FILE",
				Text: "a file with the token, in place of " + tokenVariable}),
	}
}

func (p *proxy) parse(args []string) (*options, error) {
	o := &options{}
	var at string
	var hosts, models program.List
	f := flag.NewFlagSet("proxy", flag.ContinueOnError)
	o.server.Flags(f, sealedchat.ProtocolOHTTP)
	f.StringVar(&at, "listen", defaultListen,
		"`address` to listen on, or unix:PATH; any but loopback and unix needs a token")
	o.attest.flags(f)
	f.Var(&hosts, "host", "another `name` by which clients call this address (the header Host); "+
		"may be repeated, or a list with commas")
	f.Var(&models, "models", "`names` that /v1/models lists with -protocol envelope, with commas; "+
		"over ohttp the server lists its own")
	f.StringVar(&o.keyFile, "key-file", "",
		"`file` with the API key for the server, in place of NOMYO_API_KEY")
	f.BoolVar(&o.passKey, "pass-key", false,
		"send the server the API key that the client sent, in place of one of the proxy's")
	f.StringVar(&o.tokenFile, "token", "", "`file` with a token: clients must send it as their "+
		"API key; in place of "+tokenVariable)
	f.Int64Var(&o.maxBody, "max-body", defaultMaxBody, "longest request, in `bytes`")
	if err := program.Parse(f, args, usage(), p.stdout, p.stderr); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, program.WrongInput("%q: only flags are accepted (see proxy -h)", f.Arg(0))
	}
	if err := o.server.Check(f, p.env); err != nil {
		return o, err
	}
	if o.attest.given() && o.server.URL == "" {
		return o, program.WrongInput("-attest-sev and -attest-tdx need -url: the demo has no " +
			"hardware that vouches for it")
	}
	var err error
	if o.server.Verifiers, err = o.attest.verifiers(); err != nil {
		return o, err
	}
	if o.attest.given() && p.verifiers != nil {
		o.server.Verifiers = p.verifiers
	}
	if o.maxBody < 1 || o.maxBody > math.MaxInt32 {
		return o, program.WrongInput("-max-body: want 1 to %d", math.MaxInt32)
	}
	o.models = models
	if len(models) > 0 && o.server.Protocol != sealedchat.ProtocolEnvelope {
		return o, program.WrongInput("-models is for -protocol envelope: over ohttp the server " +
			"lists its models")
	}
	if o.passKey && o.server.URL == "" {
		return o, program.WrongInput("-pass-key needs -url: the demo has a key of its own")
	}
	if o.passKey && o.keyFile != "" {
		return o, program.WrongInput("-pass-key and -key-file exclude each other")
	}
	if o.listen, err = parsePlace(at); err != nil {
		return o, program.WrongInput("-listen: %w", err)
	}
	return o, o.setHosts(hosts)
}

// setHosts makes the list of names that may stand in the header Host: those of loopback, the one
// that the proxy listens on, and the user's.
func (o *options) setHosts(more []string) error {
	o.hosts = []string{"localhost", "127.0.0.1", "::1"}
	if o.listen.host != "" {
		o.hosts = append(o.hosts, strings.ToLower(o.listen.host))
	}
	for _, name := range more {
		name = strings.ToLower(strings.TrimSpace(name))
		ip := net.ParseIP(strings.Trim(name, "[]"))
		if ip != nil {
			name = strings.Trim(name, "[]")
		}
		if name == "" || ip == nil && strings.ContainsAny(name, ":/*@ ") {
			return program.WrongInput("-host: %q is not a name or an address without a port", name)
		}
		o.hosts = append(o.hosts, name)
	}
	return nil
}

// mayServe refuses an address that others reach without a token.
func (o *options) mayServe(token bool) error {
	switch {
	case o.listen.beyond() && o.passKey:
		return program.WrongInput("-pass-key is for loopback: a client of another address has to " +
			"send the token")
	case token && o.passKey:
		return program.WrongInput("-pass-key and a token exclude each other: a client can send " +
			"one of them")
	case o.listen.beyond() && !token:
		return program.WrongInput("-listen %s is not loopback: whoever reaches it could spend the "+
			"key; give -token FILE or %s, and know that the way to it is plain HTTP",
			o.listen.address, tokenVariable)
	}
	return nil
}

// secrets are what the files and the environment have.
type secrets struct {
	apiKey *sealedchat.Secret // for the server; nil = none
	token  *sealedchat.Secret // for clients; nil = none
}

// readSecrets reads the secrets that o names. The caller destroys them.
func (p *proxy) readSecrets(o *options) (s *secrets, err error) {
	s = &secrets{}
	defer func() {
		if err != nil {
			s.destroy()
		}
	}()
	switch {
	case o.passKey: // what the environment has stays here
	case o.keyFile != "":
		if s.apiKey, err = program.PrivateSecret(o.keyFile, maxSecretFile); err != nil {
			return s, program.WrongInput("-key-file: %w", err)
		}
	default:
		if s.apiKey, err = program.Secret(p.env, "NOMYO_API_KEY"); err != nil {
			return s, err
		}
	}
	from := "-token"
	if o.tokenFile != "" {
		s.token, err = program.PrivateSecret(o.tokenFile, maxSecretFile)
		if err != nil {
			return s, program.WrongInput("-token: %w", err)
		}
	} else if s.token, err = program.Secret(p.env, tokenVariable); err != nil {
		return s, err
	} else {
		from = tokenVariable
	}
	if s.token != nil && s.token.Len() < minToken {
		return s, program.WrongInput("%s: a token of %d bytes, want %d or more", from,
			s.token.Len(), minToken)
	}
	return s, nil
}

// digest is what the guard compares tokens with; nil without a token.
func (s *secrets) digest() *[sha256.Size]byte {
	if s.token == nil {
		return nil
	}
	var sum [sha256.Size]byte
	_ = s.token.Use(func(b []byte) error { sum = sha256.Sum256(b); return nil })
	return &sum
}

func (s *secrets) destroy() {
	s.apiKey.Destroy()
	s.token.Destroy()
}
