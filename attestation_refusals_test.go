// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/attest"
)

// Whatever comes in place of good evidence, nothing is sent except the two requests that fetch it.
func TestAttestedRefuses(t *testing.T) {
	const secretPrompt = "Prompt-7c1e"
	other := attest.Key{Fingerprint: [32]byte{9}}
	answer := func(status int, body string, header ...string) func(*place) {
		return func(p *place) {
			p.answer = func(*http.Request, *http.Response) (*http.Response, error) {
				return respond(status, body, header...), nil
			}
		}
	}
	edit := func(edit func(string) string) func(*place) {
		return func(p *place) {
			p.answer = func(_ *http.Request, resp *http.Response) (*http.Response, error) {
				text, err := io.ReadAll(resp.Body)
				return respond(http.StatusOK, edit(string(text)), "Content-Type",
					"application/json"), err
			}
		}
	}
	document := func(change func(p *place, d *attest.Document)) func(*place) {
		return func(p *place) { p.change = func(d *attest.Document) { change(p, d) } }
	}
	// retold has a report made over other keys, or another nonce, than the document says
	retold := func(nonce func(n [32]byte) [32]byte,
		keys func([]attest.Key) []attest.Key) func(*place) {
		return func(p *place) {
			p.answer = func(req *http.Request, _ *http.Response) (*http.Response, error) {
				n, _ := attest.ParseQuery(req.URL.RawQuery)
				d := p.document(n)
				d.Evidence = p.chip.report("m1-", attest.ReportData(nonce(n), keys(d.Keys)))
				text, err := attest.Encode(d)
				return respond(http.StatusOK, string(text), "Content-Type",
					"application/json"), err
			}
		}
	}
	sameNonce := func(n [32]byte) [32]byte { return n }
	sameKeys := func(k []attest.Key) []attest.Key { return k }
	for name, test := range map[string]struct {
		change func(p *place)
		reason string
	}{
		"another measurement": {document(func(p *place, d *attest.Document) {
			d.Evidence = p.chip.report("m2-", [64]byte(d.Evidence[3:67]))
		}), "evidence refused: measurement 6d32 is not accepted"},
		"a debug guest": {document(func(p *place, d *attest.Document) {
			d.Evidence = p.chip.report("m1d", [64]byte(d.Evidence[3:67]))
		}), "evidence refused: a debug guest"},
		"another chip": {document(func(p *place, d *attest.Document) {
			d.Evidence = newSilicon(p.t).report("m1-", [64]byte(d.Evidence[3:67]))
		}), "evidence refused: the hardware did not sign it"},
		"another format": {document(func(p *place, d *attest.Document) { d.Format = "tdx" }),
			"evidence refused: want format silicon"},
		"a bit": {document(func(p *place, d *attest.Document) { d.Evidence[0] ^= 1 }),
			"evidence refused: the hardware did not sign it"},
		"another nonce": {retold(func(n [32]byte) [32]byte { n[31] ^= 1; return n }, sameKeys),
			"evidence refused: a report over other data"},
		"a report over another key": {retold(sameNonce, func(k []attest.Key) []attest.Key {
			return []attest.Key{{Type: k[0].Type, Fingerprint: other.Fingerprint}}
		}), "evidence refused: a report over other data"},
		"a report over another type": {retold(sameNonce, func(k []attest.Key) []attest.Key {
			return []attest.Key{{Type: 3 - k[0].Type, Fingerprint: k[0].Fingerprint}}
		}), "evidence refused: a report over other data"},
		"a report over more keys": {retold(sameNonce, func(k []attest.Key) []attest.Key {
			return append(slices.Clone(k), other)
		}), "evidence refused: a report over other data"},
		"keys of another gateway": {func(p *place) {
			kind := p.keys()[0].Type
			p.keys = func() []attest.Key {
				return []attest.Key{{Type: kind, Fingerprint: other.Fingerprint}}
			}
		}, "evidence refused: it vouches for other keys"},
		"the key under another type": {func(p *place) {
			k := p.keys()[0]
			p.keys = func() []attest.Key {
				return []attest.Key{{Type: 3 - k.Type, Fingerprint: k.Fingerprint}}
			}
		}, "evidence refused: it vouches for other keys"},
		"trailing bytes":    {edit(func(s string) string { return s + "x" }), "no evidence: not an"},
		"an unknown member": {edit(func(s string) string { return `{"a":1,` + s[1:] }), "a member"},
		"a member twice": {edit(func(s string) string {
			return `{"format":"silicon",` + s[1:]
		}), "a member"},
		"a long document": {edit(func(s string) string {
			return s + strings.Repeat(" ", attest.MaxDocument)
		}), "too large"},
		"much evidence": {edit(func(s string) string {
			return strings.Replace(s, `"evidence":"`, `"evidence":"`+
				strings.Repeat("AAAA", attest.MaxEvidence/3), 1)
		}), "no evidence: not an"},
		"none":          {answer(404, leak), "no evidence: the server has none (404)"},
		"an error":      {answer(500, leak), "no evidence: the server answered 500"},
		"a redirect":    {answer(302, leak, "Location", "https://x.test"), "answered 302"},
		"no time given": {answer(503, leak), "no evidence: the server answered 503"},
		"a long wait": {answer(503, leak, "Retry-After", "60"),
			"no evidence: the server answered 503"},
		"a page": {answer(200, leak, "Content-Type", "text/html"), "not application/json"},
		"a cut connection": {func(p *place) {
			p.answer = func(*http.Request, *http.Response) (*http.Response, error) {
				return nil, io.ErrUnexpectedEOF
			}
		}, "no evidence: connection failed: GET"},
	} {
		for protocol, p := range places(t) {
			name := name + ", " + string(protocol)
			test.change(p)
			recorder := &recorder{}
			client := p.speaking(protocol, func(c *Config, _ *Attestation) {
				c.Audit, c.MaxRetries = recorder.Record, 2
			})
			_, err := client.Chat(t.Context(), ask(secretPrompt))
			refused, ok := errors.AsType[*ServerKeyError](err)
			if !ok || refused.Err == nil || !strings.Contains(err.Error(), test.reason) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if strings.Contains(err.Error(), leak) {
				t.Errorf("%s: a server's words: %v", name, err)
			}
			if got := p.take(); got != "ke" {
				t.Errorf("%s: asked %s", name, got)
			}
			if strings.Contains(strings.Join(p.texts, ""), secretPrompt) {
				t.Errorf("%s: the prompt went out", name)
			}
			last := recorder.last()
			if last.Type != EventServerKeyRefused || last.Attestation != nil ||
				!strings.HasPrefix(err.Error()[strings.LastIndex(err.Error(), "trusted: ")+9:],
					strings.TrimPrefix(last.Reason, "attested: ")) {
				t.Errorf("%s: event %+v of %v", name, last, err)
			}
		}
	}
}

type verifierFunc func(AttestationDocument) (AttestationResult, error)

func (f verifierFunc) Verify(_ context.Context, doc AttestationDocument, _ [64]byte,
	_ time.Time) (AttestationResult, error) {
	return f(doc)
}

// One of several verifiers is enough, each tells its reason, and none may say nothing.
func TestAttestedVerifiers(t *testing.T) {
	p, _ := obliviousPlace(t)
	no := errors.New("never\n" + strings.Repeat("é", 400))
	refuse := verifierFunc(func(AttestationDocument) (AttestationResult, error) {
		return AttestationResult{Measurement: "00"}, no
	})
	silent := verifierFunc(func(AttestationDocument) (AttestationResult, error) {
		return AttestationResult{}, nil
	})
	for name, test := range map[string]struct {
		verifiers []Verifier
		ok        bool
	}{
		"the second":       {[]Verifier{refuse, p.chip}, true},
		"none":             {[]Verifier{refuse, refuse}, false},
		"no measurement":   {[]Verifier{silent}, false},
		"silent, and good": {[]Verifier{silent, p.chip}, true},
	} {
		client := p.client(func(_ *Config, a *Attestation) { a.Verifiers = test.verifiers })
		_, err := client.Chat(t.Context(), ask("x"))
		if (err == nil) != test.ok || err != nil && (!isServerKeyError(err) ||
			name == "none" && !errors.Is(err, no) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.take()
	client := p.client(func(_ *Config, a *Attestation) {
		a.Verifiers = []Verifier{verifierFunc(func(AttestationDocument) (AttestationResult, error) {
			panic("of a verifier")
		})}
	})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a verifier's panic was swallowed")
			}
		}()
		_, _ = client.Chat(t.Context(), ask("x"))
	}()
	if got := p.take(); got != "ke" {
		t.Errorf("asked %s", got)
	}
}

func TestAttestedMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := obliviousPlace(t)
		for age, want := range map[time.Duration]string{
			time.Minute: "kePkePkePkeP", 24 * time.Hour: "kePPPkP",
		} {
			client := p.client(func(_ *Config, a *Attestation) { a.MaxAge = age })
			for range 4 {
				if _, err := client.Chat(t.Context(), ask("x")); err != nil {
					t.Error(err)
				}
				time.Sleep(25 * time.Minute)
			}
			if got := p.take(); got != want {
				t.Errorf("%v: asked %s, want %s", age, got, want)
			}
		}
	})
}

// While the machine sleeps the monotonic clock stands still, and evidence gets older all the same.
func TestAttestedSleep(t *testing.T) {
	for asleep, want := range map[time.Duration]bool{
		0: true, time.Minute: true, 2 * time.Hour: false, -2 * time.Minute: true,
	} {
		e := &evidence{at: sleptSince(time.Now().Add(-time.Minute), asleep), maxAge: time.Hour}
		if got := e.counts(); got != want {
			t.Errorf("asleep for %v: evidence counts: %v", asleep, got)
		}
	}
}

// sleptSince is at as a machine remembers it that slept for so long since then: the time of day
// went on meanwhile, and the monotonic clock did not.
func sleptSince(at time.Time, asleep time.Duration) time.Time {
	at = at.Add(-asleep)
	monotonic := (*struct {
		wall uint64
		ext  int64 // nanoseconds of the monotonic clock, of a Time that has it
	})(unsafe.Pointer(&at))
	monotonic.ext += int64(asleep)
	return at
}

func TestAttestedConfig(t *testing.T) {
	var none *silicon
	good := []Verifier{&silicon{}}
	for name, a := range map[string]Attestation{
		"nothing":            {},
		"a nil verifier":     {Verifiers: []Verifier{nil}},
		"a nil pointer":      {Verifiers: []Verifier{none}},
		"a negative age":     {Verifiers: good, MaxAge: -1},
		"a negative timeout": {Verifiers: good, Timeout: -1},
		"a bad pin":          {Verifiers: good, Pins: []string{"abc"}},
	} {
		_, err := NewSecureCompletionClient(Config{BaseURL: "https://server.test",
			Trust: Attested(a), Transport: neverUsed(t)})
		if wrong, ok := errors.AsType[*ConfigError](err); !ok || wrong.Field != "Config.Trust" {
			t.Errorf("%s: %v", name, err)
		}
	}
	pins, verifiers := []string{strings.Repeat("ab", 32)}, slices.Clone(good)
	trust := Attested(Attestation{Verifiers: verifiers, Pins: pins})
	pins[0], verifiers[0] = "", nil
	if err := trust.validate(); err != nil {
		t.Errorf("the caller's slices were kept: %v", err)
	}
}
