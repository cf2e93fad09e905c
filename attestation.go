// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// This file has the client's end of attestation (SPEC.md, section 14), and the types of both ends.

// AttestationDocument is evidence of a confidential VM's hardware, and what a [Verifier] needs
// besides, so that it asks nobody else. A gateway's GatewayConfig.Attester makes it.
type AttestationDocument struct {
	// Format says what Evidence is: "sev-snp" or "tdx", or a name of the program's own, 1 to 32 of
	// a-z, 0-9 and "-".
	Format string
	// Evidence is the signed report or quote, as the hardware gave it: 1 byte to 64 KiB.
	Evidence []byte
	// Endorsements are certificates, revocation lists and other collateral, in an order that the
	// format decides: 32 at most, none of them empty. As JSON, with base64, the whole document has
	// 1 MiB at most.
	Endorsements [][]byte
}

// AttestationResult is what a [Verifier] found in evidence that it accepts. See
// [PublicKey.Attestation].
type AttestationResult struct {
	// Format is that of the document. The client sets it.
	Format string `json:"format"`
	// Measurement names the software that was measured, in lower-case hex: for SEV-SNP the 48
	// bytes of the report. Of several registers, commas stand between them. Required.
	Measurement string `json:"measurement"`
	// TCB says in the verifier's words which versions of the platform's own parts the evidence
	// names.
	TCB string `json:"tcb,omitempty"`
	// Verified is when the client asked for the evidence. The client sets it.
	Verified time.Time `json:"verified"`
}

// Verifier judges evidence of one format. It makes no network access. Methods may be called from
// several goroutines.
type Verifier interface {
	// Verify returns what doc proves, if doc is of the verifier's format, is signed by the
	// hardware, holds exactly reportData, is of software that the verifier's policy names, and is
	// valid at now. It returns an error otherwise, which the call returns in a *ServerKeyError:
	// its text must hold nothing of doc except values that the user has to know, such as a
	// measurement. It has to end with ctx, which has the limit of Attestation.Timeout: all callers
	// wait for it. doc comes from the network and was checked for its size alone; it is not to be
	// changed or kept. The key that the report vouches for is judged by the client, through
	// reportData.
	Verify(ctx context.Context, doc AttestationDocument, reportData [64]byte,
		now time.Time) (AttestationResult, error)
}

// Attestation is what [Attested] asks of a server's key. Zero values are defaults, except
// Verifiers.
type Attestation struct {
	// Verifiers judge the evidence: one that accepts it is enough. Required.
	Verifiers []Verifier
	// MaxAge is how long evidence counts for the key that it vouches for. 0 = 1 hour.
	MaxAge time.Duration
	// Timeout bounds getting evidence and judging it, as Config.Timeout does together with all else
	// of an attempt. 0 = 10 seconds.
	Timeout time.Duration
	// Pins are fingerprints as [Pin] takes them, of which one must hold as well. nil = none.
	Pins []string
}

// Attested takes only a key that the hardware of a confidential VM vouches for, and that one of
// a.Verifiers accepts: of [ProtocolOHTTP] the key that signs the gateway's list, with all that it
// signs; of version 1 the RSA key itself. Any gateway is trusted whose measurement is accepted,
// with whatever key. The evidence holds a nonce of the client's. The client asks for it when it has
// fetched the server's key, before anything is sealed: once for each key and MaxAge, for all
// callers together. When there is none, or none that is accepted, the call fails with
// [*ServerKeyError], whose Err is the reason. [PublicKey.Attestation] tells what was verified.
//
// The server is a [Gateway] with GatewayConfig.Attester, or another one that implements section 14
// of SPEC.md. docs/attestation.md tells what this proves, and what not.
func Attested(a Attestation) Trust {
	t := &attested{
		verifiers: slices.Clone(a.Verifiers), maxAge: a.MaxAge, timeout: a.Timeout,
	}
	if len(a.Pins) > 0 {
		t.pins = Pin(a.Pins...).(pins)
	}
	if t.maxAge == 0 {
		t.maxAge = time.Hour
	}
	if t.timeout == 0 {
		t.timeout = 10 * time.Second
	}
	return t
}

// attested is the choice of Attested. It has no memory: what was verified is the client's.
type attested struct {
	verifiers       []Verifier
	maxAge, timeout time.Duration
	pins            pins // its list is nil where there are none
	memoryless
}

func (t *attested) validate() error {
	if len(t.verifiers) == 0 {
		return errors.New("Attested needs at least one Verifier")
	}
	for _, v := range t.verifiers {
		if v == nil || isNilPointer(v) {
			return errors.New("a Verifier of Attested is nil")
		}
	}
	if t.maxAge < 0 || t.timeout < 0 {
		return errors.New("MaxAge or Timeout of Attested is negative")
	}
	if t.pins.list != nil {
		return t.pins.validate()
	}
	return nil
}

func (t *attested) checkKey(origin string, key *PublicKey) error {
	if err := t.checkPins(origin, key); err != nil {
		return err
	}
	switch {
	case key.evidence == nil:
		return key.refusal(nil, errOldList)
	case !key.evidence.counts():
		return key.refusal(nil, errExpired)
	}
	return nil
}

func (t *attested) checkPins(origin string, key *PublicKey) error {
	if t.pins.list == nil {
		return nil
	}
	return t.pins.checkKey(origin, key)
}

// attestationError is why evidence does not let a key be trusted. event says it in an audit event.
type attestationError struct {
	event string
	err   error
}

func (e *attestationError) Error() string { return e.event + ": " + fault.Reason(e.err) }
func (e *attestationError) Unwrap() error { return e.err }

const (
	noEvidence      = "no evidence"
	evidenceRefused = "evidence refused"
)

var (
	errOldList = &attestationError{noEvidence,
		errors.New("its list of keys is older than one that was seen before")}
	errExpired = &attestationError{noEvidence,
		errors.New("what came is older than MaxAge of Attested by now")}
	errUnsigned = &attestationError{noEvidence,
		errors.New("the list of keys is not signed, and evidence vouches for the key that signs")}
	errOtherKeys = &attestationError{evidenceRefused,
		errors.New("it vouches for other keys; behind a balancer, one client's requests " +
			"have to reach one gateway")}
	errNoMeasurement = errors.New("the Verifier named no measurement")
)

// evidence is what was verified for a key. It is immutable; nil is none.
type evidence struct {
	of     attest.Key
	result AttestationResult
	at     time.Time // as result.Verified, by both clocks
	maxAge time.Duration
}

// counts tells whether the evidence is not too old, also after the machine slept.
func (e *evidence) counts() bool { return e != nil && younger(e.at, time.Now(), e.maxAge) }

// younger tells whether what began at some time is younger than limit by both clocks: the monotonic
// one stands still while the machine sleeps, and the other one can be set back.
func younger(began, now time.Time, limit time.Duration) bool {
	age, wall := now.Sub(began), now.Round(0).Sub(began.Round(0))
	return age >= 0 && age < limit && wall < limit
}

// attestor gets the evidence for a client's server key, and remembers which keys had some. mu
// guards known, and no other lock is taken under it.
type attestor struct {
	*attested
	rt  http.RoundTripper
	url string

	mu    sync.Mutex
	known map[attest.Key]*evidence
}

// newAttestor returns nil for a Trust that asks for no evidence.
func newAttestor(t Trust, rt http.RoundTripper, base *url.URL) *attestor {
	choice, ok := t.(*attested)
	if !ok {
		return nil
	}
	return &attestor{attested: choice, rt: rt, url: base.String() + attest.Path,
		known: make(map[attest.Key]*evidence)}
}

// vouch notes on each of the keys that a server offered, and that nobody else has yet, the
// evidence that counts for it. Either they all have one signer, or there is one RSA key. Its errors
// are *ServerKeyError, or the end of ctx.
func (a *attestor) vouch(ctx context.Context, origin string, offered []*PublicKey) error {
	first := offered[0]
	pinned := func(k *PublicKey) bool { return a.checkPins(origin, k) == nil }
	if !slices.ContainsFunc(offered, pinned) {
		return a.checkPins(origin, first)
	}
	of, err := attestedKey(first)
	if err != nil {
		return first.refusal(nil, err)
	}
	e := a.recall(of)
	if e == nil {
		if e, err = a.ask(ctx, of); err != nil {
			if ctx.Err() != nil {
				return fault.Ended(ctx)
			}
			return first.refusal(nil, err)
		}
	}
	for _, k := range offered {
		k.evidence = e
	}
	return nil
}

// attestedKey says what evidence for key has to vouch for.
func attestedKey(key *PublicKey) (attest.Key, error) {
	of := attest.Key{Type: attest.TypeRSA}
	if key.rsa == nil {
		if of.Type = attest.TypeSigner; key.signer == "" {
			return of, errUnsigned
		}
	}
	var err error
	of.Fingerprint, err = hybrid.ParseFingerprint(key.lasting())
	return of, err
}

// recall returns the evidence for a key that counts, or nil.
func (a *attestor) recall(of attest.Key) *evidence {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.known[of]; e.counts() {
		return e
	}
	return nil
}

// remember keeps evidence for the calls to come, and forgets what is too old.
func (a *attestor) remember(e *evidence) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.known, func(_ attest.Key, e *evidence) bool { return !e.counts() })
	a.known[e.of] = e
}

// ask gets evidence for a key from the server, and has it judged.
func (a *attestor) ask(ctx context.Context, of attest.Key) (*evidence, error) {
	start, nonce := time.Now(), attest.NewNonce()
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeout, fault.ErrAttemptTimeout)
	defer cancel()
	doc, err := a.fetch(ctx, nonce)
	if errors.Is(context.Cause(ctx), fault.ErrAttemptTimeout) {
		err = fmt.Errorf("none came within %v: %w", a.timeout, context.DeadlineExceeded)
	}
	if err != nil {
		return nil, &attestationError{noEvidence, err}
	}
	if !doc.Has(of) {
		return nil, errOtherKeys
	}
	result, err := a.judge(ctx, doc, attest.ReportData(nonce, doc.Keys))
	if err != nil {
		return nil, &attestationError{evidenceRefused, err}
	}
	result.Format, result.Verified = doc.Format, start.UTC()
	return &evidence{of, result, start, a.maxAge}, nil
}

// judge has the verifiers judge a document. One that accepts it is enough.
func (a *attestor) judge(ctx context.Context, doc *attest.Document,
	reportData [64]byte) (AttestationResult, error) {
	var reasons []string
	var errs []error
	for _, v := range a.verifiers {
		result, err := v.Verify(ctx, AttestationDocument{doc.Format, doc.Evidence,
			doc.Endorsements}, reportData, time.Now())
		if err == nil && result.Measurement == "" {
			err = errNoMeasurement
		}
		if err == nil {
			result.Measurement = fault.Sanitise(result.Measurement, maxMeasurement)
			result.TCB = fault.Sanitise(result.TCB, maxTCB)
			return result, nil
		}
		reasons, errs = append(reasons, fault.Reason(err)), append(errs, err)
	}
	return AttestationResult{}, &verdicts{strings.Join(reasons, "; "), errs}
}

const (
	maxMeasurement = 1024
	maxTCB         = 256
)

// verdicts are the errors of several verifiers, on one line.
type verdicts struct {
	text string
	errs []error
}

func (e *verdicts) Error() string   { return e.text }
func (e *verdicts) Unwrap() []error { return e.errs }

// fetch asks the server for evidence until it has some, or ctx ends. It waits when the server says
// for how long. Its errors hold nothing of an answer.
func (a *attestor) fetch(ctx context.Context, nonce [32]byte) (*attest.Document, error) {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet,
			a.url+"?"+attest.Query(nonce), nil)
		if err != nil {
			return nil, err
		}
		req.Header = http.Header{"Accept": {mediaJSON}, "Cache-Control": {"no-store"},
			"User-Agent": {""}}
		answer, err := httpx.Exchange(a.rt, req, attest.MaxDocument)
		if err != nil {
			return nil, err
		}
		switch answer.Status {
		case http.StatusOK:
			if !httpx.HasType(answer.Header, mediaJSON) {
				return nil, errors.New("the answer is not " + mediaJSON)
			}
			return attest.Decode(answer.Body)
		case http.StatusNotFound:
			return nil, errors.New("the server has none (404); of a gateway, " +
				"GatewayConfig.Attester is to be set")
		case http.StatusServiceUnavailable:
			wait := httpx.RetryAfter(answer.Header.Get("Retry-After"), time.Now())
			// clients that were refused together do not come back together
			if wait > 0 && pause(ctx, wait+rand.N(wait/2+1)) {
				continue
			}
		}
		return nil, fmt.Errorf("the server answered %d", answer.Status)
	}
}
