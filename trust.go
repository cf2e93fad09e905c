// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/flight"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// Trust decides whose public key prompts are sealed to. An attacker who can answer for the server
// where TLS ends can offer a key of their own and read every prompt, so the choice is the user's:
// [TrustHTTPS], [Pin], [FirstUse] or [Attested]. Several clients may share one.
type Trust interface {
	// validate checks the choice itself when a client is made.
	validate() error
	// checkKey judges a key that the server at origin presented. Refusals are *ServerKeyError.
	checkKey(origin string, key *PublicKey) error
	// remembers reports whether accept keeps the key.
	remembers() bool
	// remember keeps a key that passed checkKey, and that the user did not refuse.
	remember(ctx context.Context, origin string, key *PublicKey) error
	// accept remembers that the user trusts this key of origin's from now on, if the choice has a
	// memory of its own.
	accept(ctx context.Context, origin string, fingerprint [32]byte) error
}

// TrustHTTPS takes the key that the server presents over HTTPS, whichever it is. It protects
// against eavesdroppers, and not against an attacker who controls the point where TLS ends. A
// change of the key calls Config.OnServerKey.
func TrustHTTPS() Trust { return trustHTTPS{} }

type trustHTTPS struct{ memoryless }

func (trustHTTPS) validate() error                   { return nil }
func (trustHTTPS) checkKey(string, *PublicKey) error { return nil }

// memoryless is for choices without a memory.
type memoryless struct{}

func (memoryless) remembers() bool                                    { return false }
func (memoryless) remember(context.Context, string, *PublicKey) error { return nil }
func (memoryless) accept(context.Context, string, [32]byte) error     { return nil }

// Pin takes only keys with one of the given fingerprints ([PublicKey.Fingerprint]: 64 hex digits,
// either case; "sha256:" before them, colons between them, and the file name that sha256sum prints
// behind them do not matter). Several allow for the server's rotation. With a wrong pin the client
// sends nothing except requests for keys. A text that is no fingerprint, or none at all, is a
// [*ConfigError] of [NewSecureCompletionClient].
//
// With [ProtocolOHTTP] a fingerprint is that of a key configuration, or of the key that signs the
// gateway's list ([PublicKey.Signer], [Gateway.Keys]), which takes every configuration that it
// signs. Pin the signer: gateways replace configurations each hour. One is enough, X-Wing's or the
// signer's: X25519's is of use with Config.OHTTP.AllowX25519 alone.
func Pin(fingerprints ...string) Trust {
	p := pins{}
	for _, f := range fingerprints {
		p.list = append(p.list, hybrid.NormalFingerprint(f))
	}
	return p
}

type pins struct {
	list []string
	memoryless
}

func (p pins) validate() error {
	if len(p.list) == 0 {
		return errors.New("Pin needs at least one fingerprint")
	}
	for _, f := range p.list {
		if err := hybrid.ValidFingerprint(f); err != nil {
			return err
		}
	}
	return nil
}

func (p pins) checkKey(_ string, key *PublicKey) error {
	if slices.ContainsFunc(p.list, key.matches) {
		return nil
	}
	return key.refusal(slices.Clone(p.list), nil)
}

// FirstUse is trust on first use: it takes the first key that a server presents, remembers it in
// store under the client's base URL, and from then on takes only that one, in every process that
// uses the store. An attacker who controls the first contact controls which key that is;
// Config.OnServerKey can ask the user. [SecureCompletionClient.AcceptServerKey] replaces the
// remembered key, for other processes after up to 30 s, and an hour for a key that they are using.
// store stays the caller's, who closes it after the client; an ephemeral one remembers until then.
// It may be the store of Config.Keys.
//
// With [ProtocolOHTTP] it remembers the signer of the gateway's list, so that the gateway may
// rotate its keys, or the configuration if the list has no signature. An attacker can sign a
// genuine list. So a user who compares the first key with the operator's has to compare
// [PublicKey.Signer] as well, or pin one of the two with AcceptServerKey: then that one alone is
// remembered. A key that is remembered for one protocol says nothing about the other.
func FirstUse(store *KeyStore) Trust { return firstUse{store} }

type firstUse struct{ store *KeyStore }

func (f firstUse) validate() error {
	if f.store == nil {
		return errors.New("FirstUse needs a key store")
	}
	if f.store.store == nil {
		return errors.New("FirstUse needs a key store that was opened or created, not a zero one")
	}
	return nil
}

func (f firstUse) remembers() bool { return true }

func (f firstUse) checkKey(origin string, key *PublicKey) error {
	if remembered, ok := f.store.store.Pin(origin); ok {
		return sameKey(remembered, key)
	}
	return nil
}

// remember decides between two first uses at the same time: the key store knows which was first.
func (f firstUse) remember(ctx context.Context, origin string, key *PublicKey) error {
	fp, err := hybrid.ParseFingerprint(key.lasting())
	if err != nil {
		return err
	}
	remembered, err := f.store.store.AddPin(ctx, origin, fp)
	if err != nil {
		return err
	}
	return sameKey(remembered, key)
}

func sameKey(remembered [32]byte, key *PublicKey) error {
	if want := hex.EncodeToString(remembered[:]); !key.matches(want) {
		return key.refusal([]string{want}, nil)
	}
	return nil
}

func (f firstUse) accept(ctx context.Context, origin string, fingerprint [32]byte) error {
	return f.store.store.AcceptPin(ctx, origin, fingerprint)
}

// restsOnTLS tells the choices that are worthless when the server's certificate is not checked.
func restsOnTLS(t Trust) bool {
	_, first := t.(firstUse)
	return first || t == TrustHTTPS()
}

const (
	serverKeyLife   = time.Hour       // how long a fetched key is used before it is asked for again
	otherKeyWait    = 2 * time.Second // for the other protocol's key, which only completes an error
	refreshCooldown = time.Minute     // after a refused request whose refresh found the same key
)

// serverKey fetches the server's public key once for all callers, has it judged, and keeps it for
// an hour. key is nil, or trusted. mu guards the fields below it, and is held only to read and
// write them. judging is a lock around judgeKey, which may wait for the user, the key store and the
// Auditor: it is taken before mu, never under it.
type serverKey struct {
	// fetch returns the keys that the server offers, best first; never none.
	fetch  func(context.Context) ([]*PublicKey, error)
	trust  Trust
	origin string                          // the base URL
	notify func(old, new *PublicKey) error // Config.OnServerKey; may be nil
	log    *slog.Logger
	audit  *auditSink
	life   context.Context
	// otherKeys returns the keys of the same server for another protocol, and its name; nil: none.
	// It tells a pin of the other protocol from a wrong one.
	otherKeys func(context.Context) ([]*PublicKey, string)

	evidence *attestor // nil without Attested

	fetching flight.Group[*PublicKey]

	mu         sync.Mutex
	key        *PublicKey // judged and in use; nil before the first fetch
	fetched    time.Time
	accepted   []string               // fingerprints that the user accepted at run time
	signed     map[string]signerState // the last one of each signer that is trusted
	quietUntil time.Time              // no refresh after a refusal before this time
	judging    chan struct{}
}

// signerState is what is known of a signer's lists.
type signerState struct {
	created int64    // the latest, in Unix seconds
	sum     [32]byte // of the last one
}

// enterJudging lets one run at a time judge a key: one that no caller waits for any more may still
// be asking the user.
func (s *serverKey) enterJudging(ctx context.Context) (leave func(), err error) {
	s.mu.Lock()
	if s.judging == nil {
		s.judging = make(chan struct{}, 1)
	}
	judging := s.judging
	s.mu.Unlock()
	select {
	case judging <- struct{}{}:
		return func() { <-judging }, nil
	case <-ctx.Done():
		return nil, fault.Ended(ctx)
	}
}

// get returns the key to seal to.
func (s *serverKey) get(ctx context.Context) (*PublicKey, error) {
	s.mu.Lock()
	key, fetched := s.key, s.fetched
	s.mu.Unlock()
	if key != nil && isFresh(fetched, time.Now()) &&
		(key.evidence == nil || key.evidence.counts()) {
		return key, nil
	}
	return s.fetching.Do(ctx, s.life, s.update)
}

// isFresh reports whether a key that was fetched at some time is still used.
func isFresh(fetched, now time.Time) bool { return younger(fetched, now, serverKeyLife) }

// refresh runs when the server refused a request that was sealed to used. It reports whether the
// server has another, trusted key by now. It asks the server only once per refusal, and not again
// for a minute when the key is the same.
func (s *serverKey) refresh(ctx context.Context, used *PublicKey) (bool, error) {
	s.mu.Lock()
	if !used.Equal(s.key) { // another call noticed first
		s.mu.Unlock()
		return true, nil
	}
	quiet := time.Now().Before(s.quietUntil)
	s.mu.Unlock()
	if quiet {
		return false, nil
	}
	key, err := s.fetching.Do(ctx, s.life, s.update)
	if err != nil {
		return false, err
	}
	if !key.Equal(used) {
		return true, nil
	}
	s.mu.Lock()
	s.quietUntil = time.Now().Add(refreshCooldown)
	s.mu.Unlock()
	return false, nil
}

// update fetches the key and judges it. It runs once at a time.
func (s *serverKey) update(ctx context.Context) (*PublicKey, error) {
	start := time.Now()
	offered, err := s.fetch(ctx)
	if err != nil {
		s.log.DebugContext(ctx, "no server key", "duration", time.Since(start), "error",
			logText(err))
		return nil, err
	}
	s.log.DebugContext(ctx, "server keys fetched", "keys", len(offered), "duration",
		time.Since(start))
	if err := s.attest(ctx, offered); err != nil {
		return nil, s.tellRefused(ctx, err)
	}
	leave, err := s.enterJudging(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	old, key, accepted := s.choose(offered)
	if err := s.judgeKey(ctx, old, key, accepted); err != nil {
		return nil, s.tellRefused(ctx, s.nameProtocol(ctx, err))
	}
	s.mu.Lock()
	s.key, s.fetched = key, time.Now()
	if s.trustsSigner(key) {
		if s.signed == nil {
			s.signed = make(map[string]signerState)
		}
		s.signed[key.signer] = signerState{max(key.signed, s.signed[key.signer].created), key.list}
	}
	s.mu.Unlock()
	if key.evidence != nil {
		s.evidence.remember(key.evidence)
	}
	return key, nil
}

// attest gets evidence for the keys that the server offers, where Attested is the choice. It asks
// for none where the user accepted one of them: that one is taken without.
func (s *serverKey) attest(ctx context.Context, offered []*PublicKey) error {
	if s.evidence == nil {
		return nil
	}
	s.mu.Lock()
	accepted := slices.Clone(s.accepted)
	s.mu.Unlock()
	for _, k := range offered {
		if slices.ContainsFunc(accepted, k.matches) {
			return nil
		}
	}
	err := s.evidence.vouch(ctx, s.origin, offered)
	if refused, ok := err.(*ServerKeyError); ok {
		s.log.WarnContext(ctx, "server key refused", "fingerprint", offered[0].lasting(),
			"error", logText(refused))
	}
	return err
}

// nameProtocol completes the error of a wrong pin: it may be the pin of the same server's key for
// the other protocol. Only that key, which is public, is asked for, and nothing is trusted by it.
// Where the user refused a key that the pin let through, the pin is right.
func (s *serverKey) nameProtocol(ctx context.Context, err error) error {
	refused, ok := err.(*ServerKeyError)
	pinned, isPin := s.trust.(pins)
	if !ok || refused.Err != nil || !isPin || s.otherKeys == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, otherKeyWait)
	defer cancel()
	keys, name := s.otherKeys(ctx)
	for _, k := range keys {
		if slices.ContainsFunc(pinned.list, k.matches) {
			refused.other = name
		}
	}
	return refused
}

// choose takes the first key that is trusted or was accepted, otherwise the first one, and returns
// the one in use as well.
func (s *serverKey) choose(offered []*PublicKey) (old, key *PublicKey, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range offered {
		if last, ok := s.signed[k.signer]; ok && k.list != last.sum &&
			k.signed < last.created-int64(keyListStep/time.Second) {
			k = k.withoutSigner() // an older list than the one that is known: a replay
			offered[i] = k
		}
		accepted = slices.ContainsFunc(s.accepted, k.matches)
		if accepted || s.trust.checkKey(s.origin, k) == nil {
			return s.key, k, accepted
		}
	}
	return s.key, offered[0], false
}

// trustsSigner tells whether key's signer is trusted, whatever it signs. Only of such a signer the
// lists are compared by age: the lists of others must not count against it. s.mu is held.
func (s *serverKey) trustsSigner(key *PublicKey) bool {
	if key.signer == "" || s.trust == TrustHTTPS() {
		return false
	}
	return slices.Contains(s.accepted, key.signer) || key.evidence != nil ||
		s.trust.checkKey(s.origin, &PublicKey{signer: key.signer}) == nil
}

// judgeKey asks the trust, and then the user. A key that the user accepted before needs neither,
// except that a trust with a memory of its own has the accepted key there, and judges by that.
func (s *serverKey) judgeKey(ctx context.Context, old, key *PublicKey, accepted bool) error {
	if err := s.trust.checkKey(s.origin, key); err != nil && !(accepted && !s.trust.remembers()) {
		s.log.WarnContext(ctx, "server key refused", "fingerprint", key.lasting())
		return err
	}
	newKey := !key.Equal(old)
	if (newKey || key.signer != "" && key.signer != old.signer) && !accepted {
		if newKey && old != nil {
			level := slog.LevelWarn
			if key.follows(old) {
				level = slog.LevelInfo
			}
			s.log.Log(ctx, level, "server key changed", "old", old.fingerprint, "new",
				key.fingerprint, "signer", key.signer)
		}
		if err := s.ask(ctx, old, key); err != nil {
			return err
		}
	}
	if err := s.tellKey(ctx, old, key); err != nil {
		return err
	}
	if err := s.tellAttested(ctx, key); err != nil {
		return err
	}
	return s.trust.remember(ctx, s.origin, key)
}

// ask has Config.OnServerKey judge a key, if it is set.
func (s *serverKey) ask(ctx context.Context, old, key *PublicKey) error {
	if s.notify == nil {
		return nil
	}
	err := s.notify(old, key)
	if err == nil {
		return nil
	}
	s.log.WarnContext(ctx, "server key refused by OnServerKey", "fingerprint", key.lasting())
	var want []string
	if old != nil {
		want = []string{old.lasting()}
	}
	return key.refusal(want, err)
}

// accept trusts a fingerprint from now on, and forgets the key in use so that the next call asks
// the server.
func (s *serverKey) accept(ctx context.Context, fingerprint string) error {
	fingerprint = hybrid.NormalFingerprint(fingerprint)
	fp, err := hybrid.ParseFingerprint(fingerprint)
	if err != nil {
		return err
	}
	if err := s.trust.accept(ctx, s.origin, fp); err != nil {
		return err
	}
	s.mu.Lock()
	if !slices.Contains(s.accepted, fingerprint) {
		s.accepted = append(s.accepted, fingerprint)
	}
	s.fetched, s.quietUntil = time.Time{}, time.Time{}
	s.mu.Unlock()
	return s.audit.tell(ctx, Event{
		Type: EventServerKeyAccepted, Fingerprint: fingerprint, Server: s.origin,
	})
}

func (s *serverKey) tellKey(ctx context.Context, old, key *PublicKey) error {
	if key.Equal(old) {
		return nil
	}
	e := Event{Type: EventServerKeyFirstSeen, Fingerprint: key.fingerprint, Server: s.origin,
		Reason: trustName(s.trust)}
	if old != nil {
		e.Type, e.OldFingerprint = EventServerKeyChanged, old.fingerprint
		if key.follows(old) {
			e.Severity = slog.LevelDebug // "INFO": 0 would be the type's
		}
	}
	return s.audit.tell(ctx, e)
}

// tellAttested tells of evidence that is about to count for the first time.
func (s *serverKey) tellAttested(ctx context.Context, key *PublicKey) error {
	if key.evidence == nil || s.evidence.recall(key.evidence.of) == key.evidence {
		return nil
	}
	return s.audit.tell(ctx, Event{Type: EventServerKeyAttested, Fingerprint: key.lasting(),
		Server: s.origin, Attestation: key.Attestation()})
}

// tellRefused tells of a key that was refused; err comes back.
func (s *serverKey) tellRefused(ctx context.Context, err error) error {
	refused, ok := errors.AsType[*ServerKeyError](err)
	// the Auditor's error is not the server's key
	if _, ofAudit := err.(*auditError); !ok || ofAudit {
		return err
	}
	e := Event{Type: EventServerKeyRefused, Fingerprint: refused.Got, Server: s.origin,
		Reason: trustName(s.trust)}
	if why, ok := refused.Err.(*attestationError); ok {
		e.Reason += ": " + why.event
	} else if refused.Err != nil {
		e.Reason = "OnServerKey"
	}
	if len(refused.Want) > 0 {
		e.OldFingerprint = refused.Want[0]
	}
	return s.audit.failed(ctx, err, e)
}

func trustName(t Trust) string {
	switch t.(type) {
	case trustHTTPS:
		return "https"
	case pins:
		return "pin"
	case firstUse:
		return "first use"
	case *attested:
		return "attested"
	}
	return ""
}
