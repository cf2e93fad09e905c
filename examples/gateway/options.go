// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// options are the checked command line.
type options struct {
	listen           string
	upstream         string
	insecureUpstream bool
	apiKeys          string // a file
	allowAll         bool
	tlsCert, tlsKey  string // files; "" = self-signed
	writeCert        string // a file
	tier             sealedchat.SecurityTier
	protocols        []sealedchat.Protocol
	pad              int           // bytes: answers over OHTTP are padded to a multiple
	dateWindow       time.Duration // for the dates of requests over OHTTP
	addressHeader    string        // "" = use the address of the connection
}

func (o *options) serves(p sealedchat.Protocol) bool { return slices.Contains(o.protocols, p) }

// usageError is wrong input: exit status 2.
type usageError struct{ error }

func wrongInput(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (p *program) parse(args []string) (*options, error) {
	o := &options{}
	var tier, protocols string
	f := flag.NewFlagSet("gateway", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors are printed in one place
	f.StringVar(&o.listen, "listen", "127.0.0.1:8443", "`address` to listen on")
	f.StringVar(&o.upstream, "upstream", "",
		"the OpenAI-compatible server's base `URL`, http://127.0.0.1:8000/v1 for example "+
			"(required)")
	f.BoolVar(&o.insecureUpstream, "insecure-upstream-http", false,
		"allow http upstream beyond loopback: opened prompts cross that network in the clear")
	f.StringVar(&o.apiKeys, "api-keys", "",
		"`file` with the API keys that clients may use, one per line; # begins a comment line")
	f.BoolVar(&o.allowAll, "allow-unauthenticated", false, "serve all clients, without API keys")
	f.StringVar(&o.tlsCert, "tls-cert", "",
		"PEM `file` with the TLS certificate chain; without it a self-signed certificate is made")
	f.StringVar(&o.tlsKey, "tls-key", "", "PEM `file` with the key of -tls-cert")
	f.StringVar(&o.writeCert, "write-cert", "",
		"save the self-signed certificate in this `file`, for -cacert of examples/chat")
	f.StringVar(&tier, "tier", "standard",
		"security `tier` that this installation provides: standard, high or maximum")
	f.StringVar(&protocols, "protocols", "envelope,ohttp",
		"`list` of the protocols to serve: envelope, ohttp, or both")
	f.IntVar(&o.pad, "pad", 0,
		"pad answers over ohttp to multiples of so many `bytes`, a power of two up to 16384; 0 = "+
			"not at all")
	f.DurationVar(&o.dateWindow, "date-window", 2*time.Minute,
		"how far the date of a request over ohttp may be from this clock")
	f.StringVar(&o.addressHeader, "address-header", "",
		"`header` in which a proxy before the gateway says a client's address, last: limits for "+
			"an address go by it")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(p.stderr,
			"usage: gateway -upstream URL (-api-keys FILE | -allow-unauthenticated) [flags]")
		f.SetOutput(p.stderr)
		f.PrintDefaults()
		return nil, err
	} else if err != nil {
		return nil, wrongInput("%w (see -help)", err)
	}
	if f.NArg() > 0 {
		return nil, wrongInput("%q: only flags are accepted (see -help)", f.Arg(0))
	}
	o.tier = sealedchat.SecurityTier(tier)
	for name := range strings.SplitSeq(protocols, ",") {
		switch p := sealedchat.Protocol(strings.TrimSpace(name)); p {
		case sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP:
			o.protocols = append(o.protocols, p)
		default:
			return nil, wrongInput("-protocols: %q is not envelope or ohttp", name)
		}
	}
	return o, o.check()
}

// check refuses options that contradict each other.
func (o *options) check() error {
	if _, _, err := net.SplitHostPort(o.listen); err != nil {
		return wrongInput("-listen: %w", err)
	}
	switch o.tier {
	case sealedchat.TierStandard, sealedchat.TierHigh, sealedchat.TierMaximum:
	default:
		return wrongInput("-tier: %q is not standard, high or maximum", string(o.tier))
	}
	switch {
	case o.dateWindow <= 0:
		return wrongInput("-date-window: want more than 0")
	case o.pad != 0 && !o.serves(sealedchat.ProtocolOHTTP):
		return wrongInput("-pad is for ohttp, which -protocols leaves out")
	case o.upstream == "":
		return wrongInput("-upstream is required (see -help)")
	case o.apiKeys == "" && !o.allowAll:
		return wrongInput("give -api-keys FILE, or -allow-unauthenticated to serve all clients")
	case o.apiKeys != "" && o.allowAll:
		return wrongInput("-api-keys and -allow-unauthenticated exclude each other")
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return wrongInput("-tls-cert and -tls-key belong together")
	case o.writeCert != "" && o.tlsCert != "":
		return wrongInput("-write-cert is for the self-signed certificate: without -tls-cert")
	}
	return nil
}

const maxKeyFile = 1 << 20

// readAPIKeys reads a file of API keys: one per line. Empty lines and lines that begin with # are
// skipped.
func readAPIKeys(name string) (authenticate func(*http.Request) (string, error), err error) {
	content, err := readPrivate(name)
	if err != nil {
		return nil, wrongInput("-api-keys: %w", err)
	}
	defer clear(content)
	var keys []*sealedchat.Secret
	defer func() {
		for _, k := range keys { // AuthenticateKeys keeps digests
			k.Destroy()
		}
	}()
	number := 0
	for line := range bytes.Lines(content) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key := sealedchat.NewSecret(line) // wipes it
		keys = append(keys, key)
		if _, err := sealedchat.AuthenticateKeys(key); err != nil {
			return nil, wrongInput(
				"-api-keys: %s, line %d: want 1 to 4096 visible ASCII characters", name, number)
		}
	}
	if len(keys) == 0 {
		return nil, wrongInput("-api-keys: no keys in %s", name)
	}
	return sealedchat.AuthenticateKeys(keys...)
}

// readPrivate reads a file that no other user may read or write. On Windows the mode does not say
// who may.
func readPrivate(name string) ([]byte, error) {
	if info, err := os.Stat(name); err != nil {
		return nil, err
		// checked first: opening could wait for the other end of a pipe
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("others may use %s (mode %04o): chmod 600 it", name, mode)
	}
	content := make([]byte, maxKeyFile+1) // in one piece: growing would leave copies
	n, err := io.ReadFull(f, content)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return content[:n], nil
	case err == nil:
		clear(content)
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxKeyFile)
	}
	clear(content)
	return nil, err
}
