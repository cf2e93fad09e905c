// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// options are the checked flags. Zero values of numbers and times are the package's defaults, where
// the flag says nothing else.
type options struct {
	config string // a file

	listen          string
	tlsCert, tlsKey string // files; "" = self-signed
	writeCert       string // a file
	plain           bool
	addressHeader   string // "" = use the address of the connection
	metrics         string // an address; "" = none
	drain, grace    time.Duration

	upstream         string
	insecureUpstream bool
	trace            bool

	apiKeys       string // a file
	allowAll      bool
	accountPlaces int

	keys          string // a folder; "" = in memory
	createKeys    bool
	rotate        time.Duration // 0 = never
	rotateConfigs time.Duration // 0 = 1 hour, or never with replay; negative = never
	aes128        bool
	audit         string // a file

	attest      bool
	attestFiles string // a folder; "" = the host has all
	attestVMPL  int
	keysInside  bool

	replay        string // a URL; "" = beside the keys
	replayPrefix  string
	replayDurable bool
	replayWindow  time.Duration
	clockSkew     time.Duration

	tier                              sealedchat.SecurityTier
	protocols                         []sealedchat.Protocol
	allow                             program.List
	pad                               int // bytes
	dateWindow                        time.Duration
	places                            int
	maxRequest, maxResponse           int64
	timeout, bodyTimeout, idleTimeout time.Duration

	tierName, protocolNames string
}

func (o *options) serves(p sealedchat.Protocol) bool { return slices.Contains(o.protocols, p) }

// fieldFlags are the flags and variables behind the fields that the package checks. Never changed.
var fieldFlags = map[string]string{
	"GatewayConfig.Upstream":             "-upstream",
	"GatewayConfig.UpstreamKey":          "NOMYO_UPSTREAM_KEY",
	"GatewayConfig.InsecureUpstreamHTTP": "-insecure-upstream-http",
	"GatewayConfig.AddressHeader":        "-address-header",
	"GatewayConfig.MaxConcurrent":        "-places",
	"GatewayConfig.AccountPlaces":        "-account-places",
	"GatewayConfig.MaxRequestBytes":      "-max-request",
	"GatewayConfig.MaxResponseBytes":     "-max-response",
	"GatewayConfig.ReplayWindow":         "-replay-window",
	"GatewayConfig.Timeout":              "-timeout",
	"GatewayConfig.BodyTimeout":          "-body-timeout",
	"GatewayConfig.KeysStayInside":       "-keys-inside",
	"GatewayConfig.OHTTP.Allow":          "-allow",
	"GatewayConfig.OHTTP.Padding":        "-pad",
	"GatewayConfig.OHTTP.DateWindow":     "-date-window",

	"KeyStoreOptions.Rotation.ConfigEvery": "-rotate-configs",
}

var usage = program.Usage{
	Lines: []string{
		"gateway -upstream URL (-api-keys FILE | -allow-unauthenticated) [flags]",
		"gateway -config FILE [flags]",
	},
	Variables: []program.Variable{
		{Name: upstreamKeyVariable, Text: "the gateway's own API key at the upstream"},
		{Name: passphraseVariable, Text: "opens the key store of -keys"},
		{Name: redisVariable, Text: "the password for -replay, whose URL has none"},
		{Name: "…_FILE", Text: "with _FILE behind its name, each of them names a file instead"},
	},
}

const (
	upstreamKeyVariable = "NOMYO_UPSTREAM_KEY"
	passphraseVariable  = "NOMYO_KEY_PASSWORD"
	redisVariable       = "NOMYO_REDIS_PASSWORD"
)

// parse reads the command line, and the file that it names.
func (p *gatewayProgram) parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("gateway", flag.ContinueOnError)
	f.StringVar(&o.config, "config", "",
		"`file` with lines like \"listen = :8443\", of the names here; the command line wins")
	o.flagsOutside(f)
	o.flagsOfClients(f)
	o.flagsOfKeys(f)
	o.flagsOfAttestation(f)
	o.flagsOfLimits(f)
	if err := program.Parse(f, args, usage, p.stdout, p.stderr); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, program.WrongInput("%q: only flags are accepted (see -h)", f.Arg(0))
	}
	if o.config != "" {
		if err := readConfig(o.config, f); err != nil {
			return nil, err
		}
	}
	if err := o.setNames(); err != nil {
		return nil, err
	}
	return o, o.check()
}

func (o *options) flagsOutside(f *flag.FlagSet) {
	f.StringVar(&o.listen, "listen", "127.0.0.1:8443", "`address` to listen on")
	f.StringVar(&o.tlsCert, "tls-cert", "",
		"PEM `file` with the TLS certificate chain; without it a self-signed certificate is made")
	f.StringVar(&o.tlsKey, "tls-key", "", "PEM `file` with the key of -tls-cert")
	f.StringVar(&o.writeCert, "write-cert", "",
		"save the self-signed certificate in this `file`, for -cacert of the clients' programs")
	f.BoolVar(&o.plain, "plain-http", false, "listen without TLS, behind a proxy that has it")
	f.StringVar(&o.addressHeader, "address-header", "",
		"`header` in which the proxy in front gives the client's address, as the last one in "+
			"it; limits by address use that")
	f.StringVar(&o.metrics, "metrics", "",
		"`address` on which Prometheus gets /metrics, 127.0.0.1:9090 for example; the "+
			"metrics name the accounts")
	f.DurationVar(&o.drain, "drain", 0,
		"how long to go on serving, and not be ready at /readyz, when asked to end")
	f.DurationVar(&o.grace, "grace", 30*time.Second,
		"how long running requests have then, after the listener was closed")
	f.StringVar(&o.upstream, "upstream", "",
		"the OpenAI-compatible server's base `URL`, http://127.0.0.1:8000/v1 for example "+
			"(required)")
	f.BoolVar(&o.insecureUpstream, "insecure-upstream-http", false,
		"allow http upstream beyond loopback: opened prompts cross that network in the clear")
	f.BoolVar(&o.trace, "trace-upstream", false,
		"pass the traceparent of a sealed request on to the upstream")
}

func (o *options) flagsOfClients(f *flag.FlagSet) {
	f.StringVar(&o.apiKeys, "api-keys", "",
		"`file` with the API keys that clients may use, one per line, with the account's name "+
			"before it or without; # begins a comment line")
	f.BoolVar(&o.allowAll, "allow-unauthenticated", false, "serve all clients, without API keys")
	f.IntVar(&o.accountPlaces, "account-places", 0,
		"`number` of requests of one account that are worked on at the same time; 0 = no limit")
	f.StringVar(&o.tierName, "tier", "standard",
		"security `tier` that this installation provides: standard, high or maximum")
	f.StringVar(&o.protocolNames, "protocols", "envelope,ohttp",
		"`list` of the protocols to serve: envelope, ohttp, or both")
	f.Var(&o.allow, "allow",
		"what requests over ohttp may ask for, like \"POST /v1/chat/completions\"; may be "+
			"repeated, or a `list` with commas; without it the package's default")
	f.IntVar(&o.pad, "pad", 0,
		"pad answers over ohttp to multiples of so many `bytes`, a power of two up to 16384; 0 = "+
			"not at all")
	f.DurationVar(&o.dateWindow, "date-window", 2*time.Minute,
		"how far the date of a request over ohttp may be from this clock")
}

func (o *options) flagsOfKeys(f *flag.FlagSet) {
	f.StringVar(&o.keys, "keys", "",
		"`folder` of the key store; without it the keys end with the program")
	f.BoolVar(&o.createKeys, "create-keys", false, "make the key store if there is none")
	f.DurationVar(&o.rotate, "rotate", 0,
		"age at which the keys of -keys are replaced, 24h for example; 0 = never: clients of "+
			"envelope that pinned a key refuse the next one, unless they pinned that of keystore "+
			"next as well")
	f.DurationVar(&o.rotateConfigs, "rotate-configs", 0,
		"age at which the key configurations of ohttp are replaced, under the signer that clients "+
			"pin, 2m or more; negative = never (default 1h; never with -replay, since machines "+
			"with copies of a key store do not learn of each other's keys)")
	f.BoolVar(&o.aes128, "aes128", false,
		"new key configurations of ohttp offer AES-128-GCM beside AES-256-GCM, for clients that "+
			"have no other; those that -keys has stay as they are until -rotate-configs is over")
	f.StringVar(&o.audit, "audit", "",
		"`file` of the audit log, in a folder that only this user may enter; needs -keys")
	f.StringVar(&o.replay, "replay", "",
		"`URL` of the Redis server in which gateways on several machines remember requests, "+
			"redis://127.0.0.1:6379/0 for example, rediss:// for TLS")
	f.StringVar(&o.replayPrefix, "replay-prefix", "sealedchat:replay:",
		"what keys in Redis begin with: `text`")
	f.BoolVar(&o.replayDurable, "replay-durable", false,
		"refuse a Redis server without \"appendonly yes\" and \"appendfsync always\", which "+
			"forgets when it restarts")
	f.DurationVar(&o.replayWindow, "replay-window", 0,
		"how long a request of envelope is remembered (default 24h)")
	f.DurationVar(&o.clockSkew, "clock-skew", time.Minute,
		"how far the clocks of gateways that share Redis may differ")
}

func (o *options) flagsOfLimits(f *flag.FlagSet) {
	f.IntVar(&o.places, "places", 0,
		"`number` of requests that are worked on at the same time (default 64)")
	f.Int64Var(&o.maxRequest, "max-request", 0, "most `bytes` of a request (default 10 MiB)")
	f.Int64Var(&o.maxResponse, "max-response", 0, "most `bytes` of an answer (default 48 MiB)")
	f.DurationVar(&o.timeout, "timeout", 0, "longest work on one request (default 10m)")
	f.DurationVar(&o.bodyTimeout, "body-timeout", 0,
		"longest time for a request's body to come, and for an answer to go (default 1m)")
	f.DurationVar(&o.idleTimeout, "idle-timeout", 0,
		"longest pause in the upstream's stream (default 1m); negative = no limit")
}

// setNames reads the flags that are lists and names.
func (o *options) setNames() error {
	switch o.tier = sealedchat.SecurityTier(o.tierName); o.tier {
	case sealedchat.TierStandard, sealedchat.TierHigh, sealedchat.TierMaximum:
	default:
		return program.WrongInput("-tier: %q is not standard, high or maximum", o.tierName)
	}
	for name := range strings.SplitSeq(o.protocolNames, ",") {
		switch p := sealedchat.Protocol(strings.TrimSpace(name)); p {
		case sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP:
			if o.serves(p) {
				return program.WrongInput("-protocols: %s stands twice", p)
			}
			o.protocols = append(o.protocols, p)
		default:
			return program.WrongInput("-protocols: %q is not envelope or ohttp", name)
		}
	}
	for i, entry := range o.allow {
		o.allow[i] = strings.TrimSpace(entry)
	}
	return nil
}

// check refuses options that contradict each other.
func (o *options) check() error {
	wrong := program.WrongInput
	if _, err := program.CheckAddress(o.listen); err != nil {
		return wrong("-listen: %w", err)
	}
	if _, err := program.CheckAddress(o.metrics); o.metrics != "" && err != nil {
		return wrong("-metrics: %w", err)
	}
	ohttp := o.serves(sealedchat.ProtocolOHTTP)
	switch {
	case o.upstream == "":
		return wrong("-upstream is required (see -h)")
	case o.dateWindow <= 0:
		return wrong("-date-window: want more than 0")
	case o.drain < 0:
		return wrong("-drain: negative")
	case o.grace < 0:
		return wrong("-grace: negative")
	case o.clockSkew < 0:
		return wrong("-clock-skew: negative")
	case o.rotate < 0:
		return wrong("-rotate: negative; 0 is never")
	case o.pad != 0 && !ohttp:
		return wrong("-pad is for ohttp, which -protocols leaves out")
	case o.rotateConfigs != 0 && !ohttp:
		return wrong("-rotate-configs is for ohttp, which -protocols leaves out")
	case o.aes128 && !ohttp:
		return wrong("-aes128 is for ohttp, which -protocols leaves out")
	case o.allow != nil && !ohttp:
		return wrong("-allow is for ohttp, which -protocols leaves out")
	}
	return o.checkPairs()
}

func (o *options) checkPairs() error {
	wrong := program.WrongInput
	switch {
	case o.apiKeys == "" && !o.allowAll:
		return wrong("give -api-keys FILE, or -allow-unauthenticated to serve all clients")
	case o.apiKeys != "" && o.allowAll:
		return wrong("-api-keys and -allow-unauthenticated exclude each other")
	case o.accountPlaces != 0 && o.apiKeys == "":
		return wrong("-account-places needs -api-keys")
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return wrong("-tls-cert and -tls-key belong together")
	case o.plain && o.tlsCert != "":
		return wrong("-plain-http and -tls-cert exclude each other")
	case o.writeCert != "" && (o.tlsCert != "" || o.plain):
		return wrong("-write-cert is for the self-signed certificate: without -tls-cert and " +
			"-plain-http")
	case o.keys == "" && o.createKeys:
		return wrong("-create-keys needs -keys")
	case o.keys == "" && o.rotate != 0:
		return wrong("-rotate needs -keys")
	case o.keys == "" && o.audit != "":
		return wrong("-audit needs -keys, which seal the log")
	case o.replay == "" && o.replayDurable:
		return wrong("-replay-durable needs -replay")
	}
	return o.checkAttestation()
}
