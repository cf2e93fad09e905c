// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

type attester = func(context.Context, [64]byte) (sealedchat.AttestationDocument, error)

// pretended stands for hardware. Its evidence is a measurement and the data, with no signature.
type pretended struct{ measurement []byte }

func (p pretended) attest(_ context.Context, data [64]byte) (sealedchat.AttestationDocument,
	error) {
	return sealedchat.AttestationDocument{Format: "pretended",
		Evidence: append(bytes.Clone(p.measurement), data[:]...), Endorsements: [][]byte{{1}}}, nil
}

func (p pretended) Verify(_ context.Context, doc sealedchat.AttestationDocument, data [64]byte,
	_ time.Time) (found sealedchat.AttestationResult, err error) {
	if !bytes.Equal(doc.Evidence, append(bytes.Clone(p.measurement), data[:]...)) {
		return found, errors.New("another measurement")
	}
	return sealedchat.AttestationResult{Measurement: hex.EncodeToString(p.measurement),
		TCB: "level 7"}, nil
}

var sevText = strings.Repeat("ab", 48)

func TestAttested(t *testing.T) {
	chip := pretended{bytes.Repeat([]byte{0xab}, 48)}
	verifiers := []sealedchat.Verifier{chip}
	for _, protocol := range []sealedchat.Protocol{
		sealedchat.ProtocolOHTTP, sealedchat.ProtocolEnvelope,
	} {
		server := newRemoteAt(t, protocol, nil, chip.attest)
		args := []string{"-url", server.url, "-cacert", server.cacert,
			"-protocol", string(protocol), "-attest-sev", sevText}
		for _, pin := range []string{"", server.pin} {
			if pin != "" {
				args = append(args, "-pin", pin)
			}
			r := startWith(t, func(p *proxy) { p.verifiers = verifiers }, nil, args...)
			a := r.do("POST", "/v1/chat/completions", question)
			if a.StatusCode != 200 || !strings.Contains(a.text, "Paris") {
				t.Errorf("%s: %d %s", protocol, a.StatusCode, a.text)
			}
			s := r.sealed()
			if s.Trust != "attested" || s.Attestation != "pretended" || s.Attested == nil ||
				s.Attested.Measurement != sevText || s.Attested.TCB != "level 7" ||
				s.Attested.Verified.IsZero() {
				t.Errorf("%s: /sealed says %+v", protocol, s)
			}
			page := r.do("GET", "/sealed", "", "Accept", "text/html")
			if !strings.Contains(page.text, sevText) || !strings.Contains(page.text, "level 7") {
				t.Errorf("%s: the page says %s", protocol, page.text)
			}
			if !strings.Contains(r.stderr.String(), "measurement "+sevText) {
				t.Errorf("%s: the log says %q", protocol, r.stderr.String())
			}
			r.stop()
		}
	}
}

// A proxy whose server shows other evidence, or none, does not start.
func TestNotAttested(t *testing.T) {
	chip := pretended{bytes.Repeat([]byte{0xab}, 48)}
	other := pretended{bytes.Repeat([]byte{0xac}, 48)}
	for name, test := range map[string]struct {
		attester  attester
		verifiers []sealedchat.Verifier // nil = those of the flag
		pin       string
		want      string
	}{
		"another measurement": {
			other.attest, []sealedchat.Verifier{chip}, "", "another measurement",
		},
		"no evidence":  {nil, []sealedchat.Verifier{chip}, "", "404"},
		"not of AMD's": {chip.attest, nil, "", "sevsnp: the document's format"},
		"another pin": {chip.attest, []sealedchat.Verifier{chip}, strings.Repeat("00", 32),
			"not the pinned one"},
	} {
		server := newRemoteAt(t, sealedchat.ProtocolOHTTP, nil, test.attester)
		args := []string{"-listen", "127.0.0.1:0", "-url", server.url, "-cacert", server.cacert,
			"-attest-sev", sevText}
		if test.pin != "" {
			args = append(args, "-pin", test.pin)
		}
		var stderr bytes.Buffer
		p := &proxy{env: func(string) string { return "" }, stdout: io.Discard, stderr: &stderr,
			keyBits: 2048, maxRetries: -1, wipe: func() {}, verifiers: test.verifiers}
		status := p.run(t.Context(), args)
		if status != 1 || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%s: exit status %d, %q, want 1 and %q", name, status, stderr.String(),
				test.want)
		}
		if server.lastKey() != "" {
			t.Errorf("%s: a request reached the gateway", name)
		}
	}
}

func TestAttestationFlags(t *testing.T) {
	four := strings.Repeat(","+sevText, 4)
	middle := "," + sevText + "," + sevText
	url := []string{"-url", "https://gateway.invalid"}
	for name, test := range map[string]struct {
		args []string
		want string // of the error; "" = none
	}{
		"a measurement": {append(url, "-attest-sev", sevText), ""},
		"two":           {append(url, "-attest-sev", sevText+","+sevText), ""},
		"with firmware": {
			append(url, "-attest-sev", sevText, "-attest-sev-tcb", "3.0.23.213"), "",
		},
		"with firmware of a kind of chip": {
			append(url, "-attest-sev", sevText, "-attest-sev-tcb", "Milan:3.0.23.213"), "",
		},
		"an unknown kind of chip": {
			append(url, "-attest-sev", sevText, "-attest-sev-tcb", "Naples:3.0.23.213"),
			"Milan, Genoa or Turin",
		},
		"a level and a cloud's key": {
			append(url, "-attest-sev", sevText, "-attest-sev-vmpl", "3", "-attest-sev-vlek"), "",
		},
		"TDX": {append(url, "-attest-tdx", sevText+four), ""},
		"TDX twice": {
			append(url, "-attest-tdx", sevText+four, "-attest-tdx", sevText+four), "",
		},
		"TDX with any": {append(url, "-attest-tdx", sevText+",any"+middle+",any"), ""},
		"both": {
			append(url, "-attest-tdx", sevText+four, "-attest-sev", sevText), "",
		},
		"a short one":    {append(url, "-attest-sev", "ab"), "96 hex digits"},
		"no hex":         {append(url, "-attest-sev", "x"+sevText[1:]), "96 hex digits"},
		"only zeros":     {append(url, "-attest-sev", strings.Repeat("0", 96)), "zeros"},
		"firmware alone": {append(url, "-attest-sev-tcb", "3.0.23.213"), "need -attest-sev"},
		"a level alone":  {append(url, "-attest-sev-vmpl", "1"), "-attest-sev-vmpl"},
		"a cloud's key beside TDX": {
			append(url, "-attest-tdx", sevText+four, "-attest-sev-vlek"), "need -attest-sev",
		},
		"a fifth level": {
			append(url, "-attest-sev", sevText, "-attest-sev-vmpl", "4"), "0 to 3",
		},
		"three numbers": {
			append(url, "-attest-sev", sevText, "-attest-sev-tcb", "3.0.23"), "four numbers",
		},
		"a number too large": {
			append(url, "-attest-sev", sevText, "-attest-sev-tcb", "3.0.23.256"), "four numbers",
		},
		"a fifth number": {
			append(url, "-attest-sev", sevText, "-attest-sev-tcb", "3.0.23.1.1"), "four numbers",
		},
		"TDX with one value": {append(url, "-attest-tdx", sevText), "four RTMRs"},
		"TDX with any kernel": {
			append(url, "-attest-tdx", sevText+","+sevText+",any"+","+sevText+","+sevText),
			"96 hex digits",
		},
		"TDX with any MRTD": {append(url, "-attest-tdx", "any"+four), "96 hex digits"},
		"TDX with any in one": {
			append(url, "-attest-tdx", sevText+four,
				"-attest-tdx", sevText+",any"+middle+","+sevText),
			"in all measurements",
		},
		"the demo":             {[]string{"-attest-sev", sevText}, "-url"},
		"an empty measurement": {append(url, "-attest-sev", ""), "96 hex digits"},
		"an empty TDX":         {append(url, "-attest-tdx", ""), "four RTMRs"},
	} {
		var stderr bytes.Buffer
		p := &proxy{env: func(string) string { return "" }, stdout: io.Discard, stderr: &stderr}
		o, err := p.parse(test.args)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want == "" && len(o.server.Verifiers) == 0:
			t.Errorf("%s: no verifier", name)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
