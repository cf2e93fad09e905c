// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
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

// v1Request is one request of protocol v1.
type v1Request struct{ *request }

// publicKey serves GET /pki/public_key.
func (q *v1Request) publicKey() {
	key, err := q.s.cfg.Keys.Public(q.r.Context())
	if err != nil {
		q.refuse(unavailable("no key", err))
		return
	}
	q.header("Content-Type", "text/plain; charset=utf-8")
	_ = q.write(http.StatusOK, key.PEM())
}

// completion serves POST /v1/chat/secure_completion.
func (q *v1Request) completion() {
	if p := q.serveCompletion(); p != nil {
		q.refuse(p)
	}
}

// serveCompletion takes a request of protocol v1 through its steps: authenticate, read, take a
// place, open, claim, check, forward, seal, send. Only what opens is claimed, so that made-up
// envelopes cannot push others out of the replay cache. A refusal is in the clear, and is sent when
// the place and the claim are given back; the plaintext is wiped before.
func (q *v1Request) serveCompletion() *refusal {
	q.within(q.s.cfg.BodyTimeout, reading)
	clientKey, p := q.admit()
	if p != nil {
		q.drain()
		return p
	}
	body, p := q.readBody()
	if p != nil {
		if p.status == http.StatusRequestEntityTooLarge ||
			p.status == http.StatusServiceUnavailable {
			q.drain()
		}
		return p
	}
	if p := q.takePlace(); p != nil {
		return p
	}
	defer q.givePlace()
	ctx, cancel := q.whileServed()
	defer cancel()
	e, p := q.parseEnvelope(body)
	if p != nil {
		return p
	}
	plaintext, p := q.openRequest(ctx, e)
	if p != nil {
		return p
	}
	defer clear(plaintext)
	return q.serveOnce(ctx, plaintext, clientKey, e)
}

// serveOnce claims an opened request, answers it, and gives the claim back if the client did not
// get the answer.
func (q *v1Request) serveOnce(
	ctx context.Context, plaintext []byte, clientKey *hybrid.PublicKey, e *envelope.Envelope,
) *refusal {
	id := sha256.Sum256(e.WrappedKey)
	if p := q.claim(ctx, id, clientKey); p != nil {
		return p
	}
	q.s.cfg.Keys.Sweep() // the upstream may take long
	defer q.s.cfg.Keys.Sweep()
	served := false
	defer func() {
		if !served { // also after a panic
			q.releaseClaim(ctx, id)
		}
	}()
	sealed, p := q.answer(ctx, plaintext, clientKey, e.TagForm)
	if p != nil {
		return p
	}
	q.header("Content-Type", hybrid.ContentType)
	served = q.write(http.StatusOK, sealed) == nil
	return nil
}

// admit authenticates the request and reads its headers, before its body is touched.
func (q *v1Request) admit() (*hybrid.PublicKey, *refusal) {
	if p := q.authenticate(q.r); p != nil {
		return nil, p
	}
	if p := q.admitOuter(q.envelopeLimit()); p != nil {
		return nil, p
	}
	id := q.r.Header.Get(hybrid.HeaderPayloadID)
	if !validPayloadID(id) {
		return nil, refuse(http.StatusBadRequest, "X-Payload-ID is missing or malformed")
	}
	q.payloadID = id
	if p := q.readTier(q.r.Header); p != nil {
		return nil, p
	}
	escaped := q.r.Header.Get(hybrid.HeaderPublicKey)
	if escaped == "" || len(escaped) > hybrid.MaxKeyText {
		return nil, refuse(http.StatusBadRequest, "X-Public-Key is missing or too large")
	}
	return q.s.clients.parse(escaped)
}

// validPayloadID: 1 to 128 letters, digits and "-_.:".
func validPayloadID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// envelopeLimit is the most bytes of a sealed request.
func (q *v1Request) envelopeLimit() int64 { return envelopeLimit(q.s.cfg.MaxRequestBytes) }

func envelopeLimit(plaintext int64) int64 {
	most := plaintext/3*4 + 64<<10 // base64, and room for the rest of the envelope
	return most + most/32          // which may write / as \/
}

// readBody reads the body within its limits of size and time.
func (q *v1Request) readBody() ([]byte, *refusal) {
	most := q.envelopeLimit()
	arriving := &arrivingBody{h: q.request}
	body, err := []byte(nil), arriving.charge()
	if err == nil {
		body, err = httpx.ReadAll(httpx.Capped(arriving, most), min(q.r.ContentLength, firstRead))
	}
	switch {
	case err == nil:
		q.within(unbounded, reading) // from here on Timeout holds
		return body, nil
	case errors.Is(err, errNoShare):
		return nil, tooManyAtOnce()
	case errors.Is(err, fault.ErrTooLarge):
		return nil, tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, notInTime()
	}
	return nil, notWhole(err)
}

// parseEnvelope takes a body apart.
func (q *v1Request) parseEnvelope(body []byte) (*envelope.Envelope, *refusal) {
	e, err := envelope.Parse(body, int(q.s.cfg.MaxRequestBytes))
	if errors.Is(err, envelope.ErrTooLarge) {
		return nil, tooLarge()
	}
	if err != nil {
		p := refuse(http.StatusBadRequest, "malformed envelope").as(SchemaRefused)
		p.cause = hybrid.EnvelopeError(err)
		return nil, p
	}
	return &e, nil
}

// openRequest opens the envelope in place. The caller wipes the plaintext.
func (q *v1Request) openRequest(ctx context.Context, e *envelope.Envelope) ([]byte, *refusal) {
	plaintext, err := q.s.cfg.Keys.OpenEnvelope(ctx, e)
	switch {
	case errors.Is(err, fault.ErrDecryption), errors.Is(err, fault.ErrEnvelope):
		return nil, refuse(http.StatusBadRequest,
			"the request cannot be decrypted; fetch the public key again").as(DecryptionRefused)
	case err != nil:
		return nil, unavailable("no key", err)
	}
	q.s.counts.opened.Add(int64(len(plaintext)))
	return plaintext, nil
}

// claim refuses a wrapped key that was served before. The client knows the status as one that is
// not worth repeating.
func (q *v1Request) claim(ctx context.Context, id [32]byte, clientKey *hybrid.PublicKey) *refusal {
	client, until := sha256.Sum256(clientKey.DER()), time.Now().Add(q.s.cfg.ReplayWindow)
	fresh, err := q.s.cfg.Replay.Claim(ctx, id, client, until)
	if err != nil {
		return unavailable("the replay cache is unavailable", err)
	}
	if !fresh {
		return sentBefore()
	}
	return nil
}

// releaseClaim lets the client repeat a request that failed. What stays claimed is only refused.
func (q *v1Request) releaseClaim(ctx context.Context, id [32]byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = q.s.cfg.Replay.Release(ctx, id)
}

// answer has the upstream answer an opened request, and seals the answer for clientKey.
func (q *v1Request) answer(
	ctx context.Context, plaintext []byte, clientKey *hybrid.PublicKey, form envelope.TagForm,
) ([]byte, *refusal) {
	request, p := q.upstreamRequest(plaintext)
	if p != nil {
		return nil, p
	}
	if p := q.tellOpened(ctx, len(plaintext)); p != nil {
		clear(request)
		return nil, p
	}
	answer, p := q.forward(ctx, request)
	if p != nil {
		return nil, p
	}
	defer clear(answer[:cap(answer)])
	if p := q.tellSealed(ctx, len(answer)); p != nil {
		return nil, p
	}
	return q.seal(answer, clientKey, form)
}

// upstreamRequest checks that the plaintext is a chat request and takes out what is not the
// upstream's business. A tier that is sealed in it counts like the header: the header can be
// stripped on the way.
func (q *v1Request) upstreamRequest(plaintext []byte) ([]byte, *refusal) {
	if !chatjson.ValidObject(plaintext) {
		return nil, notAChat("the request is not a JSON object")
	}
	o, _ := chatjson.Pick(plaintext, "model", "messages", "security_tier")
	if o.Text("model") == "" {
		return nil, notAChat("the request names no model")
	}
	if !validMessages(o["messages"]) {
		return nil, notAChat("messages must be a list of objects with a role, and not empty")
	}
	tier := hybrid.Tier(o.Text("security_tier"))
	if tier.Rank() < 0 {
		return nil, notAChat("security_tier is not standard, high or maximum")
	}
	if tier.Rank() > q.tier.Rank() {
		q.tier = tier
		if p := q.checkTier(); p != nil {
			return nil, p
		}
	}
	return jsonspan.CutOf(nil, plaintext, func(m jsonspan.Member) bool {
		return chatjson.IsStreamMember(m) || slices.ContainsFunc(chatjson.SpokenOutside, m.Is)
	}), nil
}

func notAChat(detail string) *refusal {
	return refuse(http.StatusBadRequest, detail).as(SchemaRefused)
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
func (q *v1Request) forward(ctx context.Context, request []byte) (answer []byte, p *refusal) {
	defer q.timeUpstream()()
	model := bytes.Clone(chatjson.Last(request, "model"))
	sent := httpx.NewSent(nil, request)
	defer sent.Finish()
	header := http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json"},
	}
	q.trace(header, q.r.Header) // this protocol seals no header: the outer one is the client's
	req, p := q.s.upstream.request(ctx, &upstreamCall{
		method: http.MethodPost, path: "/chat/completions", content: sent, header: header,
	})
	if p != nil {
		return nil, p
	}
	resp, p := q.askUpstream(req)
	if p != nil {
		return nil, p
	}
	defer resp.Body.Close()
	read := httpx.ReadAnswer
	good := resp.StatusCode >= 200 && resp.StatusCode < 300
	if good {
		read = httpx.ReadWhole
	}
	a, err := read(ctx, theUpstream, resp, q.s.cfg.MaxResponseBytes)
	if err != nil {
		return nil, upstreamFailure(ctx, err)
	}
	defer func() {
		if p != nil { // it may quote the prompt
			clear(a.Body[:cap(a.Body)])
		}
	}()
	if !good {
		return nil, upstreamRefusal(a)
	}
	err = chatjson.SchemaError("the answer", "not a JSON object in valid UTF-8")
	if chatjson.ValidObject(a.Body) {
		// what the upstream says of a payload id or a tier is not for the client
		answer = jsonspan.CutOf(a.Body[:0], a.Body, isMetadata)
		err = chatjson.CheckCompletionObject(answer, chatjson.Asked{})
	}
	if err != nil {
		return nil, notCompletion(err)
	}
	filled := chatjson.FillIn(answer, chatjson.Missing{
		ID: "chatcmpl-" + q.payloadID, Created: time.Now().Unix(), Model: model,
	})
	if filled != nil {
		clear(answer[:cap(answer)]) // what was cut out has moved, and left its end behind
		return filled, nil
	}
	return answer, nil
}

// notCompletion is for a 200 of the upstream's that is no chat completion. The cause names the
// member: it has none of the upstream's words.
func notCompletion(cause error) *refusal {
	p := refuse(http.StatusUnprocessableEntity, "the upstream's answer is not a chat completion")
	p.cause, p.event = cause, SchemaRefused
	return p
}

func isMetadata(m jsonspan.Member) bool { return m.Is("_metadata") }

// metadata is the _metadata object that is sealed with every answer.
type metadata struct {
	PayloadID   string      `json:"payload_id"`
	Status      string      `json:"response_status"`
	ProcessedAt int64       `json:"processed_at"`
	IsEncrypted bool        `json:"is_encrypted"`
	Algorithm   string      `json:"encryption_algorithm"`
	Tier        hybrid.Tier `json:"security_tier"`
}

// seal adds _metadata to the answer, which it wipes, and seals it in the request's tag form.
func (q *v1Request) seal(
	answer []byte,
	clientKey *hybrid.PublicKey,
	form envelope.TagForm,
) ([]byte, *refusal) {
	now := time.Now().Unix()
	said, err := json.Marshal(metadata{
		PayloadID: q.payloadID, Status: "success", ProcessedAt: now, IsEncrypted: true,
		Algorithm: envelope.Algorithm, Tier: q.s.cfg.Tier,
	})
	if err != nil {
		return nil, internalError(err)
	}
	const name = `,"_metadata":`
	trimmed := bytes.TrimRight(answer, " \t\r\n")
	plaintext := make([]byte, 0, len(trimmed)+len(name)+len(said))
	plaintext = append(plaintext, trimmed[:len(trimmed)-1]...)
	plaintext = append(plaintext, name...)
	plaintext = append(plaintext, said...)
	plaintext = append(plaintext, '}')
	defer clear(plaintext)
	e := &envelope.Envelope{TagForm: form, ProcessedAt: float64(now), HasProcessedAt: true}
	sealed, err := clientKey.AppendSealed(nil, e, plaintext)
	if err != nil {
		return nil, internalError(err)
	}
	q.s.counts.sealed.Add(int64(len(plaintext)))
	return sealed, nil
}
