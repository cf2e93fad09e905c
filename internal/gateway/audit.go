// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// Event is one thing that happened in a gateway. Package sealedchat makes its own Event of it,
// which says what each type has.
type Event struct {
	Type      string
	PayloadID string
	Account   string
	Tier      hybrid.Tier
	Bytes     int64
	Status    int
	Duration  time.Duration
	Reason    string
}

// The types of events, under their names in package sealedchat.
const (
	GatewayOpened     = "gateway_opened"
	GatewayClosed     = "gateway_closed"
	RequestOpened     = "request_opened"
	ResponseSealed    = "response_sealed"
	DecryptionRefused = "decryption_refused"
	ReplayRefused     = "replay_refused"
	TierRefused       = "tier_refused"
	SchemaRefused     = "schema_refused"
	PanicSurvived     = "panic_survived"
)

func (s *Server) tell(ctx context.Context, e Event) error {
	if s.cfg.Tell == nil {
		return nil
	}
	return s.cfg.Tell(ctx, e)
}

func (h *request) tell(ctx context.Context, e Event) error {
	e.PayloadID, e.Account = h.payloadID, h.accountName()
	return h.s.tell(ctx, e)
}

// tellOpened tells of a request that is about to go upstream.
func (h *request) tellOpened(ctx context.Context, size int) *refusal {
	return unaudited(h.tell(ctx, Event{Type: RequestOpened, Tier: h.tier, Bytes: int64(size)}))
}

func (h *request) tellSealed(ctx context.Context, size int) *refusal {
	return unaudited(h.tell(ctx, Event{
		Type: ResponseSealed, Bytes: int64(size), Duration: time.Since(h.start),
	}))
}

// unaudited refuses what the Auditor has refused.
func unaudited(err error) *refusal {
	if err == nil {
		return nil
	}
	return unavailable("the audit log is unavailable", err)
}

// tellRefused tells of a refusal that is an event. An error of the Auditor's can only be logged:
// the request is refused.
func (h *request) tellRefused(p *refusal) {
	if p.event == "" {
		return
	}
	e := Event{Type: p.event, Status: p.status, Reason: p.detail}
	if p.event == TierRefused {
		e.Tier = h.tier
	}
	h.logAudit(h.tell(h.r.Context(), e))
}

func (h *request) logAudit(err error) {
	if err != nil {
		h.s.cfg.Logger.Error("audit failed", "payload_id", h.payloadID, "cause", fault.Reason(err))
	}
}
