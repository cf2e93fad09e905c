// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// completion serves POST /v1/chat/secure_completion: authenticate, read, take a place, open, claim, forward, seal. Only
// what opens is claimed, so that made-up envelopes cannot push others out of the replay cache.
func (h *gatewayRequest) completion() {
	h.within(h.g.cfg.BodyTimeout, reading)
	clientKey, p := h.admit()
	if p != nil {
		h.drain()
		h.refuse(p)
		return
	}
	body, p := h.readBody()
	if p != nil {
		if p.status == http.StatusRequestEntityTooLarge || p.status == http.StatusServiceUnavailable {
			h.drain()
		}
		h.refuse(p)
		return
	}
	p = h.enter()
	if p != nil {
		h.refuse(p)
		return
	}
	defer h.leave()
	ctx, cancel := context.WithTimeout(h.r.Context(), h.g.cfg.Timeout)
	defer cancel()
	defer context.AfterFunc(h.g.life, cancel)()

	e, p := h.parseEnvelope(body)
	if p != nil {
		h.refuse(p)
		return
	}
	plaintext, p := h.openRequest(ctx, e)
	if p != nil {
		h.refuse(p)
		return
	}
	defer clear(plaintext)
	id := sha256.Sum256(e.WrappedKey)
	if p := h.claim(ctx, id, clientKey); p != nil {
		h.refuse(p)
		return
	}
	h.g.cfg.Keys.store.Sweep() // the upstream may take long
	defer h.g.cfg.Keys.store.Sweep()
	served := false
	defer func() {
		if !served { // also after a panic
			h.releaseClaim(ctx, id)
		}
	}()
	sealed, p := h.answer(ctx, plaintext, clientKey, e.TagForm)
	if p != nil {
		h.refuse(p)
		return
	}
	h.header("Content-Type", hybrid.ContentType)
	served = h.write(http.StatusOK, sealed) == nil
}

// drain takes in, and forgets, the body of a request that is refused without it. Many clients look for an answer only
// when they have sent everything; on a connection that is closed before, they find none, and repeat the request.
func (h *gatewayRequest) drain() {
	h.room.Return() // nothing of it is kept
	h.within(min(h.g.cfg.BodyTimeout, 10*time.Second), reading) // also for what net/http reads by itself
	if h.r.Header.Get("Expect") != "" {                         // these wait for a word before they send
		return
	}
	_, _ = io.CopyN(io.Discard, h.r.Body, 16<<20) // the protocol's largest request, sealed, has 14 MiB
}

// admit authenticates the request and reads its headers, before its body is touched.
func (h *gatewayRequest) admit() (*PublicKey, *refusal) {
	if auth := h.g.cfg.Authenticate; auth != nil {
		if err := auth(h.r); err != nil {
			return nil, authRefusal(err)
		}
	}
	if p := h.admitOuter(h.envelopeLimit()); p != nil {
		return nil, p
	}
	id := h.r.Header.Get(hybrid.HeaderPayloadID)
	if !validPayloadID(id) {
		return nil, refuse(http.StatusBadRequest, "X-Payload-ID is missing or malformed")
	}
	h.payloadID = id
	tier, p := tierIn(h.r.Header)
	if p != nil {
		return nil, p
	}
	h.tier = tier
	if p := h.checkTier(); p != nil {
		return nil, p
	}
	escaped := h.r.Header.Get(hybrid.HeaderPublicKey)
	if escaped == "" || len(escaped) > hybrid.MaxKeyText {
		return nil, refuse(http.StatusBadRequest, "X-Public-Key is missing or too large")
	}
	return h.g.clients.parse(escaped)
}

func authRefusal(err error) *refusal {
	var wait time.Duration
	if limit, ok := errors.AsType[*APIError](err); ok {
		wait = limit.RetryAfter
	}
	switch {
	case errors.Is(err, ErrPermission):
		return refuse(http.StatusForbidden, "permission denied")
	case errors.Is(err, ErrRateLimited):
		return &refusal{status: http.StatusTooManyRequests, detail: "rate limited", retryAfter: wait}
	case errors.Is(err, ErrUnavailable):
		return &refusal{status: http.StatusServiceUnavailable, detail: "service unavailable", retryAfter: wait}
	default:
		return refuse(http.StatusUnauthorized, "invalid API key")
	}
}

func (h *gatewayRequest) checkTier() *refusal {
	if h.tier.rank() > h.g.cfg.Tier.rank() {
		return refuse(http.StatusForbidden, "this security tier is not available here").as(EventTierRefused)
	}
	return nil
}

// validPayloadID: 1 to 128 letters, digits and "-_.:".
func validPayloadID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// envelopeLimit is the most bytes of a sealed request.
func (h *gatewayRequest) envelopeLimit() int64 { return envelopeLimit(h.g.cfg.MaxRequestBytes) }

func envelopeLimit(plaintext int64) int64 {
	most := plaintext/3*4 + 64<<10 // base64, and room for the rest of the envelope
	return most + most/32          // which may write / as \/
}

// readBody reads the body within its limits of size and time.
func (h *gatewayRequest) readBody() ([]byte, *refusal) {
	most := h.envelopeLimit()
	arriving := &arrivingBody{h: h}
	body, err := []byte(nil), arriving.charge()
	if err == nil {
		body, err = httpx.ReadAll(httpx.Capped(arriving, most), min(h.r.ContentLength, firstRead))
	}
	switch {
	case err == nil:
		h.within(unbounded, reading) // from here on Timeout holds
		return body, nil
	case errors.Is(err, errNoRoom):
		return nil, tooManyAtOnce()
	case errors.Is(err, ErrTooLarge):
		return nil, refuse(http.StatusRequestEntityTooLarge, "the request is too large")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(http.StatusRequestTimeout, "the request did not arrive in time")
	}
	return nil, &refusal{status: http.StatusBadRequest, detail: "the request did not arrive whole", cause: err}
}

// parseEnvelope takes a body apart.
func (h *gatewayRequest) parseEnvelope(body []byte) (*envelope.Envelope, *refusal) {
	e, err := envelope.Parse(body, int(h.g.cfg.MaxRequestBytes))
	if errors.Is(err, envelope.ErrTooLarge) {
		return nil, refuse(http.StatusRequestEntityTooLarge, "the request is too large")
	}
	if err != nil {
		return nil, &refusal{status: http.StatusBadRequest, detail: "malformed envelope", cause: hybrid.EnvelopeError(err), event: EventSchemaRefused}
	}
	return &e, nil
}

// openRequest opens the envelope in place. The caller wipes the plaintext.
func (h *gatewayRequest) openRequest(ctx context.Context, e *envelope.Envelope) ([]byte, *refusal) {
	plaintext, err := h.g.cfg.Keys.store.OpenEnvelope(ctx, e)
	switch {
	case errors.Is(err, ErrDecryption), errors.Is(err, ErrEnvelope):
		return nil, refuse(http.StatusBadRequest, "the request cannot be decrypted; fetch the public key again").as(EventDecryptionRefused)
	case err != nil:
		return nil, &refusal{status: http.StatusServiceUnavailable, detail: "no key", cause: err}
	}
	h.g.counts.opened.Add(int64(len(plaintext)))
	return plaintext, nil
}

// claim refuses a wrapped key that was served before. The client knows the status as one that is not worth repeating.
func (h *gatewayRequest) claim(ctx context.Context, id [32]byte, clientKey *PublicKey) *refusal {
	fresh, err := h.g.cfg.Replay.Claim(ctx, id, sha256.Sum256(clientKey.der), time.Now().Add(h.g.cfg.ReplayWindow))
	if err != nil {
		return &refusal{status: http.StatusServiceUnavailable, detail: "the replay cache is unavailable", cause: err}
	}
	if !fresh {
		return refuse(http.StatusConflict, "this request was sent before").as(EventReplayRefused)
	}
	return nil
}

// releaseClaim lets the client repeat a request that failed. What stays claimed is only refused.
func (h *gatewayRequest) releaseClaim(ctx context.Context, id [32]byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = h.g.cfg.Replay.Release(ctx, id)
}

// answer has the upstream answer an opened request, and seals the answer for clientKey.
func (h *gatewayRequest) answer(ctx context.Context, plaintext []byte, clientKey *PublicKey, form envelope.TagForm) ([]byte, *refusal) {
	request, p := h.upstreamRequest(plaintext)
	if p != nil {
		return nil, p
	}
	if p := h.tellOpened(ctx, len(plaintext)); p != nil {
		clear(request)
		return nil, p
	}
	answer, p := h.forward(ctx, request)
	if p != nil {
		return nil, p
	}
	defer clear(answer[:cap(answer)])
	if p := h.tellSealed(ctx, len(answer)); p != nil {
		return nil, p
	}
	return h.seal(answer, clientKey, form)
}

// upstreamRequest checks that the plaintext is a chat request and takes out what is not the upstream's business. A
// tier that is sealed in it counts like the header: the header can be stripped on the way.
func (h *gatewayRequest) upstreamRequest(plaintext []byte) ([]byte, *refusal) {
	if !chatjson.ValidObject(plaintext) {
		return nil, refuse(http.StatusBadRequest, "the request is not a JSON object").as(EventSchemaRefused)
	}
	o, _ := chatjson.Pick(plaintext, "model", "messages", "security_tier")
	if o.Text("model") == "" {
		return nil, refuse(http.StatusBadRequest, "the request names no model").as(EventSchemaRefused)
	}
	if !validMessages(o["messages"]) {
		return nil, refuse(http.StatusBadRequest, "messages must be a list of objects with a role, and not empty").as(EventSchemaRefused)
	}
	tier := SecurityTier(o.Text("security_tier"))
	if tier.rank() < 0 {
		return nil, refuse(http.StatusBadRequest, "security_tier is not standard, high or maximum").as(EventSchemaRefused)
	}
	if tier.rank() > h.tier.rank() {
		h.tier = tier
		if p := h.checkTier(); p != nil {
			return nil, p
		}
	}
	dropped := append([]string{"stream", "stream_options"}, chatjson.SpokenOutside...)
	return jsonspan.CutOf(nil, plaintext, func(m jsonspan.Member) bool { return slices.ContainsFunc(dropped, m.Is) }), nil
}

func validMessages(data []byte) bool {
	messages, ok := chatjson.Elements(data)
	if !ok {
		return false
	}
	n := 0
	for message := range messages {
		if o, ok := chatjson.Pick(message, "role"); !ok || o.Text("role") == "" {
			return false
		}
		n++
	}
	return n > 0
}

// forward sends the opened request upstream, wipes it, and returns a checked chat.completion.
func (h *gatewayRequest) forward(ctx context.Context, request []byte) (answer []byte, p *refusal) {
	start := time.Now()
	defer func() { h.upstream = time.Since(start) }()
	sent := httpx.NewSent(request)
	defer sent.Finish()
	req, err := h.g.way.request(ctx, http.MethodPost, "/chat/completions", "", sent)
	if err != nil {
		return nil, &refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	a, err := httpx.Exchange(h.g.way.transport(""), req, h.g.cfg.MaxResponseBytes)
	if err != nil {
		return nil, upstreamFailure(ctx, err)
	}
	defer func() {
		if p != nil { // it may quote the prompt
			clear(a.Body[:cap(a.Body)])
		}
	}()
	if a.Status != http.StatusOK {
		return nil, upstreamRefusal(a)
	}
	ok := chatjson.ValidObject(a.Body)
	if ok { // what the upstream says of a payload id or a tier is not for the client
		answer = jsonspan.CutOf(a.Body[:0], a.Body, func(m jsonspan.Member) bool { return m.Is("_metadata") })
		ok = chatjson.CheckCompletionObject(answer, chatjson.Asked{}) == nil
	}
	if !ok {
		return nil, &refusal{status: http.StatusBadGateway, detail: "the upstream's answer is not a chat completion", cause: errNotCompletion, event: EventSchemaRefused}
	}
	return answer, nil
}

var errNotCompletion = errors.New("not a chat.completion object")

func upstreamFailure(ctx context.Context, err error) *refusal {
	p := &refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: err}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		p.status, p.detail = http.StatusGatewayTimeout, "the upstream did not answer in time"
	case errors.Is(err, ErrTooLarge):
		p.detail = "the upstream's answer is too large"
	case ctx.Err() != nil:
		p.status, p.detail = http.StatusServiceUnavailable, "the request was ended"
	}
	return p
}

// upstreamRefusal keeps the kind of an upstream's error status and none of its words, which may quote the prompt.
func upstreamRefusal(a *httpx.Answer) *refusal {
	p := refuse(http.StatusBadGateway, "the upstream failed")
	p.cause = fmt.Errorf("upstream status %d", a.Status)
	switch a.Status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		p.status, p.detail = http.StatusBadRequest, "the upstream refused the request as invalid"
	case http.StatusNotFound:
		p.status, p.detail = http.StatusNotFound, "the upstream does not know this model"
	case http.StatusRequestEntityTooLarge:
		p.status, p.detail = a.Status, "the request is too large for the upstream"
	case http.StatusTooManyRequests:
		p.status, p.detail = a.Status, "the upstream is rate limited"
	case http.StatusServiceUnavailable:
		p.status, p.detail = a.Status, "the upstream is unavailable"
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		p.status, p.detail = http.StatusGatewayTimeout, "the upstream did not answer in time"
	}
	if p.status == http.StatusTooManyRequests || p.status == http.StatusServiceUnavailable {
		p.retryAfter = httpx.RetryAfter(a.Header.Get("Retry-After"), time.Now())
	}
	return p
}

// gatewayMetadata is the _metadata object that is sealed with every answer.
type gatewayMetadata struct {
	PayloadID   string       `json:"payload_id"`
	Status      string       `json:"response_status"`
	ProcessedAt int64        `json:"processed_at"`
	IsEncrypted bool         `json:"is_encrypted"`
	Algorithm   string       `json:"encryption_algorithm"`
	Tier        SecurityTier `json:"security_tier"`
}

// seal adds _metadata to the answer, which it wipes, and seals it in the request's tag form.
func (h *gatewayRequest) seal(answer []byte, clientKey *PublicKey, form envelope.TagForm) ([]byte, *refusal) {
	now := time.Now().Unix()
	metadata, err := json.Marshal(gatewayMetadata{
		PayloadID: h.payloadID, Status: "success", ProcessedAt: now, IsEncrypted: true,
		Algorithm: envelope.Algorithm, Tier: h.g.cfg.Tier,
	})
	if err != nil {
		return nil, &refusal{status: http.StatusInternalServerError, detail: "internal error", cause: err}
	}
	const name = `,"_metadata":`
	trimmed := bytes.TrimRight(answer, " \t\r\n")
	plaintext := make([]byte, 0, len(trimmed)+len(name)+len(metadata))
	plaintext = append(plaintext, trimmed[:len(trimmed)-1]...)
	plaintext = append(plaintext, name...)
	plaintext = append(plaintext, metadata...)
	plaintext = append(plaintext, '}')
	defer clear(plaintext)
	e := &envelope.Envelope{TagForm: form, ProcessedAt: float64(now), HasProcessedAt: true}
	sealed, err := clientKey.rsa.AppendSealed(nil, e, plaintext)
	if err != nil {
		return nil, &refusal{status: http.StatusInternalServerError, detail: "internal error", cause: err}
	}
	h.g.counts.sealed.Add(int64(len(plaintext)))
	return sealed, nil
}

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
