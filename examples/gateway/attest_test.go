// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// pretended stands for hardware. Its evidence is the data, with no signature.
type pretended struct{}

func (pretended) attest(_ context.Context, data [64]byte) (sealedchat.AttestationDocument, error) {
	return sealedchat.AttestationDocument{Format: "pretended", Evidence: data[:],
		Endorsements: [][]byte{{1}}}, nil
}

func (pretended) Verify(_ context.Context, doc sealedchat.AttestationDocument, data [64]byte,
	_ time.Time) (found sealedchat.AttestationResult, err error) {
	if !bytes.Equal(doc.Evidence, data[:]) {
		return found, errors.New("other data")
	}
	return sealedchat.AttestationResult{Measurement: hex.EncodeToString(data[:8])}, nil
}

// A client without a pin takes the keys of a gateway with -attest, also of a folder that is inside.
func TestAttest(t *testing.T) {
	u := newUpstream(t, nil)
	folder := filepath.Join(t.TempDir(), "keys")
	for name, more := range map[string][]string{
		"in memory": nil,
		"inside":    {"-keys", folder, "-create-keys", "-keys-inside"},
	} {
		cert := filepath.Join(t.TempDir(), "cert.pem")
		args := append([]string{"-upstream", u.URL + "/v1", "-allow-unauthenticated", "-attest",
			"-write-cert", cert}, more...)
		asked := 0
		r := startWith(t, func(*options) (attester, error) {
			asked++
			return pretended{}.attest, nil
		}, args...)
		r.trust = sealedchat.Attested(sealedchat.Attestation{
			Verifiers: []sealedchat.Verifier{pretended{}}})
		for _, p := range []sealedchat.Protocol{
			sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP,
		} {
			r.protocol = p
			if text, err := chat(t, r, cert, ""); err != nil || text != "echo of "+prompt {
				t.Errorf("%s, %s: %q, %v", name, p, text, err)
			}
		}
		if status := r.end(t); status != 0 || asked != 1 {
			t.Errorf("%s: exit status %d, asked %d times", name, status, asked)
		}
	}
	// Without -attest there is none.
	cert := filepath.Join(t.TempDir(), "cert.pem")
	r := start(t, "-upstream", u.URL+"/v1", "-allow-unauthenticated", "-write-cert", cert)
	r.protocol = sealedchat.ProtocolOHTTP
	r.trust = sealedchat.Attested(sealedchat.Attestation{
		Verifiers: []sealedchat.Verifier{pretended{}}})
	if _, err := chat(t, r, cert, ""); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("without -attest: %v", err)
	}
}

// On a machine without the hardware the program says so and ends.
func TestAttestNowhere(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
		t.Skip("this machine makes reports")
	}
	status, stdout, stderr := once(t, "-listen", "127.0.0.1:0", "-upstream", "http://127.0.0.1:1/v1",
		"-allow-unauthenticated", "-attest")
	if status != 1 || stdout != "" || !strings.Contains(stderr, "-attest: ") ||
		!strings.Contains(stderr, "confidential VM") {
		t.Errorf("exit status %d, %q, %q", status, stdout, stderr)
	}
}

func TestAttestFlags(t *testing.T) {
	testkit.NoLeaks(t)
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"files alone":         {[]string{"-attest-files", "x"}, "are for -attest"},
		"a level alone":       {[]string{"-attest-vmpl", "1"}, "are for -attest"},
		"inside alone":        {[]string{"-keys-inside", "-keys", "x"}, "are for -attest"},
		"a level too high":    {[]string{"-attest", "-attest-vmpl", "4"}, "0 to 3"},
		"a level too low":     {[]string{"-attest", "-attest-vmpl", "-1"}, "0 to 3"},
		"inside without keys": {[]string{"-attest", "-keys-inside"}, "-keys-inside is for -keys"},
		"keys outside":        {[]string{"-attest", "-keys", "x"}, "-keys-inside"},
	} {
		p := &gatewayProgram{env: environment, stdout: io.Discard, stderr: io.Discard}
		_, err := p.parse(append([]string{"-upstream", "http://127.0.0.1:1/v1",
			"-allow-unauthenticated"}, test.args...))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
