// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// EventType names what happened. The set is closed: [AuditLog.Record] refuses other names. What a program has to say
// itself is an [EventNote].
type EventType string

// The events. Every one has Time, Severity, User and PID; what else it has stands behind it.
//
// Of an answer that is passed on as it comes (Oblivious HTTP), EventResponseOpened and EventResponseSealed are told once,
// when it ends, however it does, with the bytes that may have gone out: what the Auditor can withhold is its end, without
// which no client takes it for whole. A chunk that does not open is EventDecryptionRefused in its place.
//
// A gateway does not tell of requests over Oblivious HTTP that do not open or are malformed: strangers could push everything
// else out of an audit log with them. GatewayConfig.Logger is told. Its keys for Oblivious HTTP are EventKeyGenerated, with
// Fingerprint and Reason, after they were saved, EventKeyRetired and EventKeyDeleted.
const (
	EventClientOpened  EventType = "client_opened"  // Server, Memory. An error fails NewSecureCompletionClient
	EventClientClosed  EventType = "client_closed"  // Server, Duration, Memory
	EventGatewayOpened EventType = "gateway_opened" // Memory. An error fails NewGateway
	EventGatewayClosed EventType = "gateway_closed" // Duration, Memory

	EventKeyGenerated      EventType = "key_generated"      // Fingerprint, Bits, Duration. Before it is saved: an error stops that
	EventKeyLoaded         EventType = "key_loaded"         // Fingerprint of the primary key, Bits, Keys, Path. From a file; also when another process changed it
	EventKeyRotated        EventType = "key_rotated"        // Fingerprint, OldFingerprint, Keys: another key is the primary one
	EventKeyRetired        EventType = "key_retired"        // Fingerprint
	EventKeyDeleted        EventType = "key_deleted"        // Fingerprint: by Delete, or its grace was over
	EventKeyImported       EventType = "key_imported"       // Fingerprint, Bits, Reason (the format)
	EventKeyExported       EventType = "key_exported"       // Fingerprint, Bits. Before it is handed out
	EventPassphraseChanged EventType = "passphrase_changed" // Path, Generation that begins
	EventDataSealed        EventType = "data_sealed"        // Bytes, Generation. Before it is handed out
	EventDataOpened        EventType = "data_opened"        // Bytes. Before it is handed out

	EventServerKeyFirstSeen EventType = "server_key_first_seen" // Fingerprint, Server, Reason (the trust). Before it is used
	EventServerKeyChanged   EventType = "server_key_changed"    // Fingerprint, OldFingerprint, Server, Reason. Before it is used
	EventServerKeyAccepted  EventType = "server_key_accepted"   // Fingerprint, Server: AcceptServerKey
	EventServerKeyRefused   EventType = "server_key_refused"    // Fingerprint, OldFingerprint (expected), Server, Reason

	EventRequestSealed  EventType = "request_sealed"  // PayloadID, Fingerprint (the server's), Tier, Bytes. Before it is sent
	EventResponseOpened EventType = "response_opened" // PayloadID, Bytes, Duration, Reason (how it ended, if early). Before it is handed out; of a stream, its end
	EventRequestOpened  EventType = "request_opened"  // in a gateway: PayloadID, Tier, Bytes. Before it goes upstream
	EventResponseSealed EventType = "response_sealed" // in a gateway: PayloadID, Bytes, Duration, Reason (how it ended, if early). Before it is sent; of a stream, its end

	EventDecryptionRefused EventType = "decryption_refused" // PayloadID or Path, Reason; Bytes that a client handed out before
	EventReplayRefused     EventType = "replay_refused"     // PayloadID, Reason
	EventTierRefused       EventType = "tier_refused"       // PayloadID, Tier
	EventSchemaRefused     EventType = "schema_refused"     // PayloadID, Reason: a malformed envelope, request or answer
	EventRetry             EventType = "retry"              // PayloadID and Attempt that failed, Wait (0: at once, to a server's new key), Status, Reason. An error ends the call

	EventMemoryLowered      EventType = "memory_lowered"      // Memory: what was locked so far is not any more
	EventPermissionsRefused EventType = "permissions_refused" // Path, Reason
	EventLockLost           EventType = "lock_lost"           // Path
	EventPanicSurvived      EventType = "panic_survived"      // in a gateway: PayloadID, Reason (the panic's type)

	EventNote EventType = "note" // a program's own: Details
)

type eventType struct {
	severity Severity
	happened bool
}

// eventTypes is never changed.
var eventTypes = map[EventType]eventType{
	EventClientOpened:  {SeverityInfo, false},
	EventClientClosed:  {SeverityInfo, true},
	EventGatewayOpened: {SeverityInfo, false},
	EventGatewayClosed: {SeverityInfo, true},

	EventKeyGenerated:      {SeverityInfo, false},
	EventKeyLoaded:         {SeverityInfo, true},
	EventKeyRotated:        {SeverityInfo, true},
	EventKeyRetired:        {SeverityInfo, true},
	EventKeyDeleted:        {SeverityWarn, true},
	EventKeyImported:       {SeverityWarn, true},
	EventKeyExported:       {SeverityWarn, false},
	EventPassphraseChanged: {SeverityWarn, true},
	EventDataSealed:        {SeverityInfo, false},
	EventDataOpened:        {SeverityInfo, false},

	EventServerKeyFirstSeen: {SeverityInfo, false},
	EventServerKeyChanged:   {SeverityWarn, false},
	EventServerKeyAccepted:  {SeverityWarn, true},
	EventServerKeyRefused:   {SeverityCritical, true},

	EventRequestSealed:  {SeverityInfo, false},
	EventResponseOpened: {SeverityInfo, false},
	EventRequestOpened:  {SeverityInfo, false},
	EventResponseSealed: {SeverityInfo, false},

	EventDecryptionRefused: {SeverityError, true},
	EventReplayRefused:     {SeverityError, true},
	EventTierRefused:       {SeverityError, true},
	EventSchemaRefused:     {SeverityError, true},
	EventRetry:             {SeverityWarn, false},

	EventMemoryLowered:      {SeverityWarn, true},
	EventPermissionsRefused: {SeverityError, true},
	EventLockLost:           {SeverityCritical, true},
	EventPanicSurvived:      {SeverityCritical, true},

	EventNote: {SeverityInfo, false},
}

func (t EventType) valid() bool { _, ok := eventTypes[t]; return ok }

// Happened reports whether events of this type are told after the fact, so that an error of the [Auditor] undoes nothing.
// It is false for a name that is not in the set.
func (t EventType) Happened() bool { return eventTypes[t].happened }

// memoryStats is the state of protected memory now.
func memoryStats() *MemoryStats {
	s := locked.Report()
	return &MemoryStats{Level: s.Level.String(), LockedBytes: s.Locked, UnlockedBytes: s.Unlocked, LimitBytes: max(s.Limit, 0)}
}

// memoryRanks orders the levels of MemoryStats. It is never changed.
var memoryRanks = map[string]int{locked.Wiped.String(): 1, locked.Locked.String(): 2}

// refusals are the errors that are events of their own, and why, in words of this package.
var refusals = []struct {
	err    error
	event  EventType
	reason string
}{
	{ErrDecryption, EventDecryptionRefused, "it does not open"},
	{ErrReplay, EventReplayRefused, "seen before, or another request's"},
	{ErrTierDowngrade, EventTierRefused, ""},
	{ErrResponseSchema, EventSchemaRefused, "not a chat completion"},
	{ErrEnvelope, EventSchemaRefused, "malformed envelope"},
}

// auditReason is an error in a few words that never hold a peer's.
func auditReason(err error) string {
	if answer, ok := errors.AsType[*APIError](err); ok {
		return "status " + strconv.Itoa(answer.StatusCode)
	}
	if errors.Is(err, ErrConnection) {
		return "connection failed"
	}
	return "failed"
}

// The client's events.

func (c *SecureCompletionClient) tellSealed(ctx context.Context, r *sealedRequest, size int, o *callOptions) error {
	return c.audit.tell(ctx, Event{
		Type: EventRequestSealed, PayloadID: r.payloadID, Fingerprint: r.server.fingerprint, Tier: o.tier, Bytes: int64(size),
	})
}

// tellAnswer tells what became of an answer. When the Auditor fails, the answer is wiped.
func (c *SecureCompletionClient) tellAnswer(ctx context.Context, id string, answer *completion, err error, start time.Time, o *callOptions) error {
	if err != nil {
		return c.tellRefused(ctx, id, err, o.tier)
	}
	err = c.audit.tell(ctx, Event{
		Type: EventResponseOpened, PayloadID: id, Bytes: int64(len(answer.plaintext)), Duration: time.Since(start),
	})
	if err = fault.Join(err, c.tellMemory(ctx)); err != nil {
		clear(answer.plaintext)
	}
	return err
}

// tellRefused tells of an answer that was refused; err comes back.
func (c *SecureCompletionClient) tellRefused(ctx context.Context, id string, err error, tier SecurityTier) error {
	return c.tellRefusedAfter(ctx, id, 0, err, tier)
}

// tellRefusedAfter is tellRefused for an answer of which so many bytes were handed out before.
func (c *SecureCompletionClient) tellRefusedAfter(ctx context.Context, id string, out int64, err error, tier SecurityTier) error {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			e := Event{Type: r.event, PayloadID: id, Bytes: out, Reason: r.reason}
			if r.event == EventTierRefused {
				e.Tier = tier
			}
			return c.audit.failed(ctx, err, e)
		}
	}
	return err
}

// tellMemory tells once when less is locked than was.
func (c *SecureCompletionClient) tellMemory(ctx context.Context) error {
	if c.audit.to.Load() == nil {
		return nil
	}
	now := c.stats()
	rank := int32(memoryRanks[now.Level])
	before := c.memoryRank.Swap(rank)
	if rank == 0 || rank >= before {
		return nil
	}
	return c.audit.tell(ctx, Event{Type: EventMemoryLowered, Memory: now})
}

func (c *SecureCompletionClient) tellOpened() error {
	c.stats = memoryStats
	if c.cfg.Audit == nil {
		return nil
	}
	c.audit.set(c.cfg.Audit)
	stats := c.stats()
	c.memoryRank.Store(int32(memoryRanks[stats.Level]))
	return c.audit.tell(context.Background(), Event{Type: EventClientOpened, Server: c.server.origin, Memory: stats})
}

func (c *SecureCompletionClient) tellClosed() error {
	if c.audit.to.Load() == nil {
		return nil
	}
	return c.audit.tell(context.Background(), Event{
		Type: EventClientClosed, Server: c.server.origin, Duration: time.Since(c.opened), Memory: c.stats(),
	})
}

func (c *SecureCompletionClient) tellRetry(ctx context.Context, id string, attempt int, wait time.Duration, err error) error {
	e := Event{Type: EventRetry, PayloadID: id, Attempt: attempt, Wait: wait, Reason: auditReason(err)}
	if answer, ok := errors.AsType[*APIError](err); ok {
		e.Status = answer.StatusCode
	}
	return c.audit.tell(ctx, e)
}

// The events of the server's key.

func (s *serverKey) tellKey(ctx context.Context, old, key *PublicKey) error {
	if key.Equal(old) {
		return nil
	}
	e := Event{Type: EventServerKeyFirstSeen, Fingerprint: key.fingerprint, Server: s.origin, Reason: trustName(s.trust)}
	if old != nil {
		e.Type, e.OldFingerprint = EventServerKeyChanged, old.fingerprint
	}
	return s.audit.tell(ctx, e)
}

// tellRefused tells of a key that was refused; err comes back.
func (s *serverKey) tellRefused(ctx context.Context, err error) error {
	refused, ok := errors.AsType[*ServerKeyError](err)
	if _, told := err.(*auditError); !ok || told { // the Auditor's error is not the server's key
		return err
	}
	e := Event{Type: EventServerKeyRefused, Fingerprint: refused.Got, Server: s.origin, Reason: trustName(s.trust)}
	if refused.Err != nil {
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
	}
	return ""
}

// The gateway's events.

func (h *gatewayRequest) tell(ctx context.Context, e Event) error {
	e.PayloadID = h.payloadID
	return h.g.audit.tell(ctx, e)
}

// tellOpened tells of a request that is about to go upstream.
func (h *gatewayRequest) tellOpened(ctx context.Context, size int) *refusal {
	return h.unaudited(h.tell(ctx, Event{Type: EventRequestOpened, Tier: h.tier, Bytes: int64(size)}))
}

func (h *gatewayRequest) tellSealed(ctx context.Context, size int) *refusal {
	return h.unaudited(h.tell(ctx, Event{Type: EventResponseSealed, Bytes: int64(size), Duration: time.Since(h.start)}))
}

// tellCut tells of an answer that began and gets no end. An error of the Auditor's can only be logged.
func (q *obliviousRequest) tellCut(ctx context.Context, size int, err error) {
	if _, tried := errors.AsType[*lateRefusal](err); tried {
		return // it was the Auditor who ended it
	}
	e := Event{Type: EventResponseSealed, Bytes: int64(size), Duration: time.Since(q.start), Reason: "ended early"}
	switch {
	case q.stuck || q.r.Context().Err() != nil:
		e.Reason = "left early"
	case errors.Is(err, errCutShort) || errors.Is(err, ErrConnection):
		e.Reason = "cut short"
	}
	q.logAudit(q.tell(context.WithoutCancel(ctx), e))
}

func (h *gatewayRequest) unaudited(err error) *refusal {
	if err == nil {
		return nil
	}
	return &refusal{status: http.StatusServiceUnavailable, detail: "the audit log is unavailable", cause: err}
}

// tellRefused tells of a refusal that is an event. An error of the Auditor's can only be logged: the request is refused.
func (h *gatewayRequest) tellRefused(p *refusal) {
	if p.event == "" {
		return
	}
	e := Event{Type: p.event, Status: p.status, Reason: p.detail}
	if p.event == EventTierRefused {
		e.Tier = h.tier
	}
	h.logAudit(h.tell(h.r.Context(), e))
}

func (h *gatewayRequest) logAudit(err error) {
	if err != nil {
		h.g.cfg.Logger.Error("audit failed", "payload_id", h.payloadID, "cause", fault.Reason(err))
	}
}

func (g *Gateway) tellOpened() error {
	g.audit.set(g.cfg.Audit)
	return g.audit.tell(context.Background(), Event{Type: EventGatewayOpened, Memory: memoryStats()})
}

func (g *Gateway) tellClosed() error {
	return g.audit.tell(context.Background(), Event{Type: EventGatewayClosed, Duration: time.Since(g.opened), Memory: memoryStats()})
}
