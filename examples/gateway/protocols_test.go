// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
)

// The gateway serves only the protocols of -protocols, and the output for each of them works.
func TestProtocols(t *testing.T) {
	u := newUpstream(t, nil)
	for flag, served := range map[string][]bool{
		"envelope,ohttp": {true, true}, "ohttp, envelope": {true, true}, "envelope": {true, false},
		"ohttp": {false, true},
	} {
		cert := filepath.Join(t.TempDir(), "gateway.pem")
		args := []string{"-upstream", u.URL + "/v1", "-allow-unauthenticated", "-write-cert", cert,
			"-protocols", flag}
		if served[1] {
			args = append(args, "-pad", "256", "-date-window", "1m")
		}
		r := start(t, append(args, "-grace", "1s")...)
		for i, p := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope,
			sealedchat.ProtocolOHTTP} {
			if printed := []string{r.pin, r.ohttpPin}[i] != ""; printed != served[i] {
				t.Errorf("-protocols %q: pin of %v printed: %v", flag, p, printed)
			}
			if !served[i] {
				if r.pin == "" {
					r.pin = strings.Repeat("0", 64)
				}
				if r.ohttpPin == "" {
					r.ohttpPin = strings.Repeat("0", 64)
				}
			}
			r.protocol = p
			text, err := chat(t, r, cert, "")
			if served[i] != (err == nil && text == "echo of "+prompt) {
				t.Errorf("-protocols %q, %v: %q, %v", flag, p, text, err)
			}
		}
		if served[1] && !strings.Contains(r.ohttpTry,
			"-protocol ohttp -stream -pin "+r.ohttpPin+" ") {
			t.Errorf("the command line %q", r.ohttpTry)
		}
		if status := r.end(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
	}
}
