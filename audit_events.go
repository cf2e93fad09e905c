// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import "log/slog"

// EventType names what happened. The set is closed: [AuditLog.Record] refuses other names. A
// program's own events are [EventNote].
//
// Every event has Time, Severity, User and PID; the table has its other fields. "before": an error
// of the [Auditor] stops what the event tells of. "after": it has happened already, and stands; the
// error is returned by the call, beside the call's own if that failed, and logged where there is no
// call.
//
//	type                    told    severity  fields
//	EventClientOpened       before  INFO      Server, Memory. An error fails
//	                                          NewSecureCompletionClient
//	EventClientClosed       after   INFO      Server, Duration, Memory
//	EventGatewayOpened      before  INFO      Memory. An error fails NewGateway
//	EventGatewayClosed      after   INFO      Duration, Memory
//	EventKeyGenerated       before  INFO      Fingerprint, Bits, Duration. Before it is saved:
//	                                          an error stops that
//	EventKeyLoaded          after   INFO      Fingerprint of the primary key, Bits, Keys, Path.
//	                                          From a file; also when another process changed it
//	EventKeyRotated         after   INFO      Fingerprint, OldFingerprint, Keys: another key is
//	                                          the primary one; or, with Reason, a gateway's
//	                                          key configurations were replaced
//	EventKeyRetired         after   INFO      Fingerprint
//	EventKeyDeleted         after   WARN      Fingerprint: by Delete, or its grace was over
//	EventKeyImported        after   WARN      Fingerprint, Bits, Reason (the format)
//	EventKeyExported        before  WARN      Fingerprint, Bits. Before it is handed out
//	EventPassphraseChanged  after   WARN      Path, Generation that begins
//	EventDataSealed         before  INFO      Bytes, Generation. Before it is handed out
//	EventDataOpened         before  INFO      Bytes. Before it is handed out
//	EventServerKeyFirstSeen before  INFO      Fingerprint, Server, Reason (the trust). Before it
//	                                          is used
//	EventServerKeyChanged   before  WARN      Fingerprint, OldFingerprint, Server, Reason.
//	                                          Before it is used. INFO, if the same signer
//	                                          signed the one before
//	EventServerKeyAttested  before  INFO      Fingerprint (of an RSA key, or of the signer),
//	                                          Server, Attestation. Before it is used; again
//	                                          for new evidence
//	EventServerKeyAccepted  after   WARN      Fingerprint, Server: AcceptServerKey
//	EventServerKeyRefused   after   CRITICAL  Fingerprint, OldFingerprint (expected), Server,
//	                                          Reason (the trust; of Attested, also whether there
//	                                          was no evidence, or it was refused)
//	EventRequestSealed      before  INFO      PayloadID, Fingerprint (the server's), Tier,
//	                                          Bytes, Reason (AES-128-GCM, where the gateway
//	                                          offers no AES-256-GCM). Before it is sent
//	EventResponseOpened     before  INFO      PayloadID, Bytes, Duration, Reason (how it ended,
//	                                          if early). Before it is handed out; of a stream,
//	                                          its end
//	EventRequestOpened      before  INFO      in a gateway: PayloadID, Account, Tier, Bytes.
//	                                          Before it goes upstream
//	EventResponseSealed     before  INFO      in a gateway: PayloadID, Account, Bytes,
//	                                          Duration, Reason (how it ended, if early). Before
//	                                          it is sent; of a stream, its end
//	EventDecryptionRefused  after   ERROR     PayloadID or Path, Reason; Bytes that a client
//	                                          handed out before
//	EventReplayRefused      after   ERROR     PayloadID, Reason
//	EventTierRefused        after   ERROR     PayloadID, Tier
//	EventSchemaRefused      after   ERROR     PayloadID, Reason: a malformed envelope, request
//	                                          or answer
//	EventRetry              before  WARN      PayloadID and Attempt that failed, Wait (0: at
//	                                          once, to a server's new key), Status, Reason. An
//	                                          error ends the call
//	EventMemoryLowered      after   WARN      Memory: what was locked so far is not any more
//	EventPermissionsRefused after   ERROR     Path, Reason
//	EventLockLost           after   CRITICAL  Path
//	EventPanicSurvived      after   CRITICAL  in a gateway: PayloadID, Reason (the panic's type)
//	EventNote               before  INFO      a program's own: Details
//
// Every event about a gateway's request has Account, where GatewayConfig.Authenticate named one.
//
// Of an answer that is passed on as it comes (Oblivious HTTP), EventResponseOpened and
// EventResponseSealed are told once, when it ends, however it does, with the bytes that may have
// gone out. The Auditor can withhold its end, without which no client takes the answer for whole. A
// chunk that does not open is EventDecryptionRefused in their place.
//
// A gateway does not tell of requests over Oblivious HTTP that do not open or are malformed:
// anybody could push everything else out of an audit log with them. GatewayConfig.Logger is told.
// Its first keys for Oblivious HTTP are EventKeyGenerated, with Fingerprint and Reason, after they
// were saved. One EventKeyRotated, with the fingerprint of the first configuration in the list,
// stands for each rotation after that, and for all that follows from it: retired ones are wiped
// after one hour and five minutes.
type EventType string

// The events.
const (
	EventClientOpened  EventType = "client_opened"
	EventClientClosed  EventType = "client_closed"
	EventGatewayOpened EventType = "gateway_opened"
	EventGatewayClosed EventType = "gateway_closed"

	EventKeyGenerated      EventType = "key_generated"
	EventKeyLoaded         EventType = "key_loaded"
	EventKeyRotated        EventType = "key_rotated"
	EventKeyRetired        EventType = "key_retired"
	EventKeyDeleted        EventType = "key_deleted"
	EventKeyImported       EventType = "key_imported"
	EventKeyExported       EventType = "key_exported"
	EventPassphraseChanged EventType = "passphrase_changed"
	EventDataSealed        EventType = "data_sealed"
	EventDataOpened        EventType = "data_opened"

	EventServerKeyFirstSeen EventType = "server_key_first_seen"
	EventServerKeyChanged   EventType = "server_key_changed"
	EventServerKeyAttested  EventType = "server_key_attested"
	EventServerKeyAccepted  EventType = "server_key_accepted"
	EventServerKeyRefused   EventType = "server_key_refused"

	EventRequestSealed  EventType = "request_sealed"
	EventResponseOpened EventType = "response_opened"
	EventRequestOpened  EventType = "request_opened"
	EventResponseSealed EventType = "response_sealed"

	EventDecryptionRefused EventType = "decryption_refused"
	EventReplayRefused     EventType = "replay_refused"
	EventTierRefused       EventType = "tier_refused"
	EventSchemaRefused     EventType = "schema_refused"
	EventRetry             EventType = "retry"

	EventMemoryLowered      EventType = "memory_lowered"
	EventPermissionsRefused EventType = "permissions_refused"
	EventLockLost           EventType = "lock_lost"
	EventPanicSurvived      EventType = "panic_survived"

	EventNote EventType = "note"
)

type eventType struct {
	severity slog.Level
	happened bool // told after the fact
}

// eventTypes is never changed. The table above says the same.
var eventTypes = map[EventType]eventType{
	EventClientOpened:  {slog.LevelInfo, false},
	EventClientClosed:  {slog.LevelInfo, true},
	EventGatewayOpened: {slog.LevelInfo, false},
	EventGatewayClosed: {slog.LevelInfo, true},

	EventKeyGenerated:      {slog.LevelInfo, false},
	EventKeyLoaded:         {slog.LevelInfo, true},
	EventKeyRotated:        {slog.LevelInfo, true},
	EventKeyRetired:        {slog.LevelInfo, true},
	EventKeyDeleted:        {slog.LevelWarn, true},
	EventKeyImported:       {slog.LevelWarn, true},
	EventKeyExported:       {slog.LevelWarn, false},
	EventPassphraseChanged: {slog.LevelWarn, true},
	EventDataSealed:        {slog.LevelInfo, false},
	EventDataOpened:        {slog.LevelInfo, false},

	EventServerKeyFirstSeen: {slog.LevelInfo, false},
	EventServerKeyChanged:   {slog.LevelWarn, false},
	EventServerKeyAttested:  {slog.LevelInfo, false},
	EventServerKeyAccepted:  {slog.LevelWarn, true},
	EventServerKeyRefused:   {SeverityCritical, true},

	EventRequestSealed:  {slog.LevelInfo, false},
	EventResponseOpened: {slog.LevelInfo, false},
	EventRequestOpened:  {slog.LevelInfo, false},
	EventResponseSealed: {slog.LevelInfo, false},

	EventDecryptionRefused: {slog.LevelError, true},
	EventReplayRefused:     {slog.LevelError, true},
	EventTierRefused:       {slog.LevelError, true},
	EventSchemaRefused:     {slog.LevelError, true},
	EventRetry:             {slog.LevelWarn, false},

	EventMemoryLowered:      {slog.LevelWarn, true},
	EventPermissionsRefused: {slog.LevelError, true},
	EventLockLost:           {SeverityCritical, true},
	EventPanicSurvived:      {SeverityCritical, true},

	EventNote: {slog.LevelInfo, false},
}

func (t EventType) valid() bool { _, ok := eventTypes[t]; return ok }

func (t EventType) happened() bool { return eventTypes[t].happened }
