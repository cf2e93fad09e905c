// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// Protocol is a way to seal requests and answers. The zero value is [ProtocolEnvelope].
type Protocol uint8

// The protocols.
const (
	// ProtocolEnvelope is NOMYO's version 1 (SPEC.md): RSA-OAEP with SHA-256 (RFC 8017, section 7.1) and AES-256-GCM.
	ProtocolEnvelope Protocol = iota
	// ProtocolOHTTP is Oblivious HTTP in chunks (RFC 9458 and its chunked form; SPEC.md, chapter 11) with X-Wing, a
	// post-quantum hybrid. Method, path, headers and API key travel sealed too, an answer opens only for its request, and
	// answers stream. Config.Keys is not used.
	ProtocolOHTTP
)

// String is "envelope" or "ohttp".
func (p Protocol) String() string {
	switch p {
	case ProtocolEnvelope:
		return "envelope"
	case ProtocolOHTTP:
		return "ohttp"
	}
	return "Protocol(" + strconv.Itoa(int(p)) + ")"
}

const (
	pathChat = "/v1/chat/completions"

	maxPadding     = 1 << 20  // what a reader of binary HTTP takes
	maxAnswerChunk = 64 << 10 // four times what a gateway has to write at most

	maxDateAge = 30 * time.Second // of a request, for the answer that its date is wrong to be about the clocks
)

func (c *Config) validateProtocol() error {
	if c.Protocol > ProtocolOHTTP {
		return configError("Config.Protocol", "want ProtocolEnvelope or ProtocolOHTTP")
	}
	if c.Padding < 0 || c.Padding > maxPadding {
		return configError("Config.Padding", "want 0 to %d", maxPadding)
	}
	if c.Padding > 0 && c.Protocol != ProtocolOHTTP {
		return configError("Config.Padding", "only ProtocolOHTTP pads")
	}
	if c.AllowX25519 && c.Protocol != ProtocolOHTTP {
		return configError("Config.AllowX25519", "only ProtocolOHTTP has a choice")
	}
	return nil
}

// setProtocol makes the client speak the protocol that its user chose.
func (c *SecureCompletionClient) setProtocol() {
	if c.cfg.Protocol == ProtocolOHTTP {
		c.server.origin = "ohttp+" + c.server.origin // what is remembered for one protocol says nothing about the other
		c.retry.once = true
		c.wire = &obliviousHTTP{
			url: c.base.String() + ohttp.Path, scheme: c.base.Scheme, authority: c.base.Host, keys: c.cfg.Keys, server: c.server,
			memory: c.memory, padding: c.cfg.Padding, maxAnswer: c.cfg.MaxResponseBytes, idle: c.cfg.IdleTimeout,
			base: c.base, takeX25519: c.cfg.AllowX25519,
		}
		return
	}
	c.wire = &envelopeV1{
		completionURL: c.base.String() + hybrid.PathCompletion, keys: c.cfg.Keys, server: c.server, maxAnswer: c.cfg.MaxResponseBytes,
		base: c.base,
	}
}

// obliviousHTTP is the client's end of Oblivious HTTP in chunks.
type obliviousHTTP struct {
	url               string // of the gateway
	scheme, authority string
	keys              *KeyStore // whose sweeper clears what the work leaves behind
	server            *serverKey
	memory            *locked.Arena
	padding           int
	maxAnswer         int64
	idle              time.Duration // between two pieces of an event stream
	base              *url.URL
	takeX25519        bool

	ahead atomic.Int64 // nanoseconds that the gateway's clock is ahead of this one's, once it complained
}

// obliviousCall is the client's half of one exchange.
type obliviousCall struct {
	*ohttp.Request
	tier  SecurityTier  // asked for
	safe  bool          // the method only reads: doing it twice does no harm
	dated time.Time     // when it was sealed, by this clock
	ahead time.Duration // of the gateway's clock, when it refused the request's date
	late  bool          // it did
}

func (p *obliviousHTTP) fetchKeys(ctx context.Context, rt http.RoundTripper) ([]*PublicKey, error) {
	keys, err := fetchConfigs(ctx, rt, p.url, time.Now)
	if err != nil || p.takeX25519 {
		return keys, err
	}
	return onlyXWing(keys)
}

func (p *obliviousHTTP) streams() bool { return true }

func (p *obliviousHTTP) warm(ctx context.Context) error {
	_, err := p.server.get(ctx)
	return err
}

const (
	mediaJSON   = "application/json"
	mediaEvents = "text/event-stream"

	mediaEventsUTF8 = mediaEvents + "; charset=utf-8"
)

// jsonFields are the fields of a request that carries JSON.
func jsonFields(accept string) []bhttp.Field {
	return []bhttp.Field{{Name: "content-type", Value: mediaJSON}, {Name: "accept", Value: accept}}
}

// seal seals a request of any kind for the server's key. Where the answer is wanted whole, it takes no notice of stream,
// like the servers of version 1.
func (p *obliviousHTTP) seal(ctx context.Context, in *plainRequest, o *callOptions) (*sealedRequest, error) {
	server, err := p.server.get(ctx)
	if err != nil {
		return nil, err
	}
	defer p.keys.store.Sweep() // the answer may take long
	if in.whole && chatjson.HasStreamMember(in.content) {
		room, err := p.memory.Alloc(len(in.content))
		if err != nil {
			return nil, err
		}
		defer room.Destroy()
		clean := *in
		clean.content = chatjson.CutStream(room.Bytes()[:0], in.content)
		in = &clean
	}
	message, err := p.encode(in, o)
	if err != nil {
		return nil, err
	}
	defer message.Destroy()
	var call *ohttp.Request
	var body []byte
	erase.Do(func() {
		if call, err = ohttp.NewRequest(server.config); err == nil {
			body, err = call.Seal(nil, message.Bytes())
		}
	})
	r := &sealedRequest{server: server, keys: p.keys}
	if call != nil {
		id := call.ID()
		r.payloadID, r.ohttp = formatUUID([16]byte(id[:16])), &obliviousCall{
			Request: call, tier: o.tier, safe: in.method == http.MethodGet || in.method == http.MethodHead, dated: time.Now(),
		}
	}
	if err == nil {
		r.http, err = p.request(ctx, body)
	}
	if err != nil {
		r.release()
		return nil, fmt.Errorf("sealedchat: sealing the request: %w", err)
	}
	return r, nil
}

// request is what the world outside sees.
func (p *obliviousHTTP) request(ctx context.Context, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	httpx.Count(req) // what is sent again is the same ciphertext, which a gateway serves once
	req.Header = http.Header{
		"Content-Type":  {ohttp.TypeRequest},
		"Accept":        {ohttp.TypeResponse},
		"Cache-Control": {"no-store"},
		"Incremental":   {"?1"},
		"User-Agent":    {""}, // sends none
	}
	return req, nil
}

// encode makes the binary HTTP message, in protected memory. The API key goes straight from one such memory to the other.
func (p *obliviousHTTP) encode(in *plainRequest, o *callOptions) (*locked.Buffer, error) {
	header := slices.Concat(in.header, []bhttp.Field{{Name: "date", Value: p.date()}})
	if o.tier != "" {
		header = append(header, bhttp.Field{Name: ohttp.HeaderTier, Value: string(o.tier)})
	}
	if o.apiKey == nil {
		return p.encodeWith(in, header)
	}
	var message *locked.Buffer
	err := o.apiKey.Use(func(key []byte) error {
		if err := httpx.ValidAPIKey(key); err != nil {
			return err
		}
		bearer, err := p.memory.Alloc(len("Bearer ") + len(key))
		if err != nil {
			return err
		}
		defer bearer.Destroy()
		value := append(append(bearer.Bytes()[:0], "Bearer "...), key...)
		// A string over memory that is about to go: it does not outlive the encoding, which copies it.
		message, err = p.encodeWith(in, append(header, bhttp.Field{Name: "authorization", Value: unsafe.String(&value[0], len(value))}))
		return err
	})
	return message, err
}

func (p *obliviousHTTP) encodeWith(in *plainRequest, header []bhttp.Field) (*locked.Buffer, error) {
	most := 256 + len(in.method) + len(p.scheme) + len(p.authority) + len(in.path) + len(in.content) + p.padding
	for _, f := range header {
		most += 16 + len(f.Name) + len(f.Value)
	}
	buffer, err := p.memory.Alloc(most)
	if err != nil {
		return nil, err
	}
	message, err := bhttp.AppendRequest(buffer.Bytes()[:0], &bhttp.Request{
		Method: in.method, Scheme: p.scheme, Authority: p.authority, Path: in.path, Header: header,
	}, in.content, nil, p.padding)
	if err != nil {
		buffer.Destroy()
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	buffer.Narrow(0, len(message)) // which never outgrows its room: appending grows by less
	return buffer, nil
}

// date is the time by the gateway's clock, as far as that is known.
func (p *obliviousHTTP) date() string {
	return time.Now().Add(time.Duration(p.ahead.Load())).UTC().Format(http.TimeFormat)
}

// failure: nothing in the clear is the gateway's word.
func (p *obliviousHTTP) failure(a *httpx.Answer) error { return outerError(a.Status, a.Body) }

func outerError(status int, body []byte) *OuterError {
	e := &OuterError{StatusCode: status, unknownKey: status == http.StatusUnprocessableEntity && problemTypeOf(body) == ohttp.ProblemKey}
	_, e.Detail = errorDetail(body)
	return e
}

// problemTypeOf is the type of a problem document (RFC 9457), "" of anything else.
func problemTypeOf(body []byte) string {
	if !chatjson.ValidObject(body) {
		return ""
	}
	o, _ := chatjson.Pick(body, "type")
	return o.Text("type")
}

// refused asks for the list of keys again when the gateway does not know the one that was used, and sets the clock after
// the gateway's when that refused the date, which is authentic. The former came in the clear: whoever ends TLS can say so of
// a request that he let through, so that only one that reads is sealed again.
func (p *obliviousHTTP) refused(ctx context.Context, r *sealedRequest, err error) (bool, error) {
	if outer, ok := errors.AsType[*OuterError](err); ok {
		if !outer.unknownKey {
			return false, nil
		}
		changed, err := p.server.refresh(ctx, r.server)
		outer.KeyChanged = changed
		return changed && r.ohttp.safe, err
	}
	if !r.ohttp.late {
		return false, nil
	}
	before := time.Duration(p.ahead.Swap(int64(r.ohttp.ahead)))
	return (before - r.ohttp.ahead).Abs() > time.Second, nil
}

// open decrypts a whole answer, and returns its content if the status inside is 200.
func (p *obliviousHTTP) open(r *sealedRequest, a *httpx.Answer, into hybrid.Alloc) (*opened, error) {
	if !httpx.HasType(a.Header, ohttp.TypeResponse) {
		return nil, &OuterError{StatusCode: a.Status, Detail: "not a sealed answer"}
	}
	message := a.Body // in place: what is opened is never ahead of what was read
	if into != nil {
		var err error
		if message, err = into(len(a.Body)); err != nil {
			return nil, err
		}
	}
	content, err := p.openInto(message, r.ohttp, a.Body, into != nil)
	if err != nil {
		clear(message)
		return nil, err
	}
	return &opened{plaintext: content}, nil
}

// openInto opens sealed, and leaves the content at the beginning of message, which is as large, and nothing behind it.
func (p *obliviousHTTP) openInto(message []byte, call *obliviousCall, sealed []byte, protect bool) (content []byte, err error) {
	var buffer []byte
	if protect {
		room, err := p.memory.Alloc(min(len(sealed), maxAnswerChunk+ohttp.Overhead) + 1)
		if err != nil {
			return nil, err
		}
		defer room.Destroy()
		buffer = room.Bytes()
	}
	erase.Do(func() { message, err = openAll(message[:0], call, sealed, buffer) })
	if err != nil {
		return nil, innerError(err)
	}
	in, body, err := bhttp.ReadResponse(bytes.NewReader(message), bhttp.Limits{Content: p.maxAnswer})
	if err != nil {
		return nil, innerError(err)
	}
	// Content moves to the front of the message: what is written is never ahead of what was read.
	for err == nil {
		var n int
		n, err = body.Read(message[len(content):])
		content = message[:len(content)+n]
	}
	if err != io.EOF {
		return nil, innerError(err)
	}
	clear(message[len(content):])
	if err := call.judge(in, content); err != nil {
		return nil, err
	}
	return content, nil
}

// openAll appends the whole message to dst.
func openAll(dst []byte, call *obliviousCall, sealed, buffer []byte) ([]byte, error) {
	reader, err := call.Response(bytes.NewReader(sealed), maxAnswerChunk)
	if err != nil {
		return dst, err
	}
	defer reader.Close()
	if buffer != nil {
		reader.UseBuffer(buffer)
	}
	for {
		into := dst[len(dst):cap(dst)]
		var probe [1]byte
		if len(into) == 0 {
			into = probe[:] // a message is shorter than what it was sealed to: only the end is left
		}
		n, err := reader.Read(into)
		if len(dst)+n > cap(dst) {
			return dst, io.ErrShortBuffer
		}
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
}

// judge makes an error of an authentic answer that is none to be content with. Of content it keeps nothing but words.
func (c *obliviousCall) judge(in *bhttp.Response, content []byte) error {
	header := httpx.HeaderOf(in.Header)
	if in.Status >= 200 && in.Status < 300 {
		return c.checkTier(header)
	}
	content = content[:min(len(content), httpx.MaxErrorBody)]
	// Without this the answer may be the upstream's, which has worked on the request whatever its status says.
	unprocessed := header.Get(ohttp.HeaderProcessed) == "no"
	// And a copy that was held back until its date was over is refused truly, although the first one was served.
	if unprocessed && time.Since(c.dated) < maxDateAge && in.Status == http.StatusBadRequest && problemTypeOf(content) == ohttp.ProblemDate {
		if at, err := http.ParseTime(header.Get("Date")); err == nil {
			c.late, c.ahead = true, time.Until(at)
		}
	}
	err := newAPIError(in.Status, header, content, time.Now())
	err.unprocessed, err.sealed = unprocessed, !unprocessed
	return err
}

// checkTier: the gateway states its tier in every answer. One that states none cannot be shown to be high enough.
func (c *obliviousCall) checkTier(header http.Header) error {
	if c.tier != "" && SecurityTier(header.Get(hybrid.HeaderTier)).rank() < c.tier.rank() {
		return ErrTierDowngrade
	}
	return nil
}

// innerError gives errors of the sealed message this package's types.
func innerError(err error) error {
	format, malformed := errors.AsType[*bhttp.FormatError](err)
	switch {
	case errors.Is(err, ErrTooLarge):
		return err
	case errors.Is(err, ohttp.ErrDecryption):
		return ErrDecryption
	case errors.Is(err, ohttp.ErrTooLarge), errors.Is(err, bhttp.ErrTooLarge):
		return fmt.Errorf("%w: answer", ErrTooLarge)
	case malformed:
		return fmt.Errorf("%w: %s: %s", ErrEnvelope, format.Part, format.Reason)
	case errors.Is(err, ohttp.ErrTruncated):
		return &fault.TruncatedError{What: "no final chunk"}
	case errors.Is(err, bhttp.ErrTruncated):
		return &fault.TruncatedError{What: "the message ends early"}
	}
	return fmt.Errorf("%w: %w", ErrEnvelope, err)
}
