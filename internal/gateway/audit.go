// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"time"

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

// unaudited refuses what the Auditor has refused.
func unaudited(err error) *refusal {
	if err == nil {
		return nil
	}
	return unavailable("the audit log is unavailable", err)
}
