// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

// A line is
//
//	{"seq":N,"key":G,"prev":"HEX"[,"begins":N][,"torn":N,"torn_sha256":"HEX"][,"lost":N],EVENT,"mac":"HEX"}
//
// with exactly these members in exactly this order and spelling, and a line feed after it. EVENT is
// what the line is for: members of any name. The code is HMAC-SHA256 over everything before
// `,"mac"`.

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Limits of a line.
const (
	MaxLine = 64 << 10 // bytes, with the line feed
	maxSeq  = 1 << 53  // what every reader of JSON takes
)

// ErrLine means that a text is not a line of an audit log.
var ErrLine = errors.New("auditlog: not a line of an audit log")

const purpose = "sealedchat audit log v1"

// Head is a place in the log: the number of a line, and its code. The zero Head is the place before
// the first line.
type Head struct {
	Seq uint64
	MAC [sha256.Size]byte
}

// String is "SEQ-MAC", the number in decimal and the code in lower-case hex; "" for the zero Head.
// [ParseHead] reads it.
func (h Head) String() string {
	if h == (Head{}) {
		return ""
	}
	return strconv.FormatUint(h.Seq, 10) + "-" + hex.EncodeToString(h.MAC[:])
}

// ParseHead reads what [Head.String] gives, with white space around it or not. Its error is
// ErrInvalidRequest, also for an empty text.
func ParseHead(text string) (h Head, err error) {
	seq, mac, _ := strings.Cut(strings.TrimSpace(text), "-")
	h.Seq, err = strconv.ParseUint(seq, 10, 64)
	b, hexErr := hex.DecodeString(mac)
	if err != nil || hexErr != nil || h.Seq == 0 || len(b) != len(h.MAC) {
		return Head{}, fmt.Errorf("%w: the head of an audit log is NUMBER-HEX, with 64 hex digits",
			fault.ErrInvalidRequest)
	}
	copy(h.MAC[:], b)
	return h, nil
}

// Line is one line without its event.
type Line struct {
	Seq        uint64            // from 1, across files
	Generation uint32            // of the data key that the code's key is derived from
	Prev       [sha256.Size]byte // code of the line before; zeros for the first
	// first line kept when this file was begun, at most Seq; 0: not said
	Begins uint64
	// size of the unfinished line that stands before this one; 0 for none
	Torn    uint64
	TornSum [sha256.Size]byte // its SHA-256
	Lost    uint64            // events that could not be written before this one
	Event   []byte            // members of the event, without braces
	MAC     [sha256.Size]byte
}

// Head is the place of the line.
func (l *Line) Head() Head { return Head{l.Seq, l.MAC} }

// Key makes and checks codes. It is not safe for concurrent use. The hash state behind it, on the
// Go heap, holds the key until Wipe.
type Key struct{ mac hash.Hash }

// Wipe clears the key, which is useless afterwards. A nil *Key has nothing to wipe.
func (k *Key) Wipe() {
	if k != nil {
		erase.Wipe(k.mac)
	}
}

// NewKey derives the key of a log from a data key, which stays the caller's: HKDF-SHA256 (RFC 5869)
// without salt, and with the purpose, after its length, as info, so that the key is none of those
// that seal data.
func NewKey(dataKey []byte) (*Key, error) {
	info := binary.BigEndian.AppendUint16(nil, uint16(len(purpose)))
	key, err := hkdf.Key(sha256.New, dataKey, nil, string(append(info, purpose...)), sha256.Size)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return &Key{hmac.New(sha256.New, key)}, nil
}

func (k *Key) sum(text []byte) (sum [sha256.Size]byte) {
	k.mac.Reset()
	k.mac.Write(text)
	k.mac.Sum(sum[:0])
	return sum
}

// Append adds a line to dst, with its line feed, and sets l.MAC.
func (k *Key) Append(dst []byte, l *Line) []byte {
	start := len(dst)
	number := func(name string, n uint64) {
		dst = append(dst, name...)
		dst = strconv.AppendUint(dst, n, 10)
	}
	code := func(name string, b []byte) {
		dst = append(dst, name...)
		dst = hex.AppendEncode(dst, b)
		dst = append(dst, '"')
	}
	number(nameSeq, l.Seq)
	number(nameKey, uint64(l.Generation))
	code(namePrev, l.Prev[:])
	if l.Begins > 0 {
		number(nameBegins, l.Begins)
	}
	if l.Torn > 0 {
		number(nameTorn, l.Torn)
		code(nameTornSum, l.TornSum[:])
	}
	if l.Lost > 0 {
		number(nameLost, l.Lost)
	}
	dst = append(dst, ',')
	dst = append(dst, l.Event...)
	l.MAC = k.sum(dst[start:])
	code(nameMAC, l.MAC[:])
	return append(dst, '}', '\n')
}

const (
	nameSeq     = `{"seq":`
	nameKey     = `,"key":`
	namePrev    = `,"prev":"`
	nameBegins  = `,"begins":`
	nameTorn    = `,"torn":`
	nameTornSum = `,"torn_sha256":"`
	nameLost    = `,"lost":`
	nameMAC     = `,"mac":"`

	tailSize = len(nameMAC) + 2*sha256.Size + len(`"}`)
)

// Parse reads a line without its line feed. It does not check the code: [Key.Fits] does. Event is a
// part of text.
func Parse(text []byte) (*Line, error) {
	if len(text) >= MaxLine || len(text) <= tailSize {
		return nil, ErrLine
	}
	l := &Line{}
	tail := reader{rest: text[len(text)-tailSize:]}
	tail.code(nameMAC, l.MAC[:])
	tail.skip("}")
	r := reader{rest: text[:len(text)-tailSize]}
	l.Seq = r.number(nameSeq, maxSeq)
	l.Generation = uint32(r.number(nameKey, 1<<32-1))
	r.code(namePrev, l.Prev[:])
	if r.begins(nameBegins) {
		l.Begins = r.number(nameBegins, maxSeq)
	}
	if r.begins(nameTorn) {
		l.Torn = r.number(nameTorn, MaxLine)
		r.code(nameTornSum, l.TornSum[:])
	}
	if r.begins(nameLost) {
		l.Lost = r.number(nameLost, maxSeq)
	}
	r.skip(",")
	if l.Event = r.rest; r.failed || tail.failed || len(l.Event) == 0 || l.Begins > l.Seq {
		return nil, ErrLine
	}
	return l, nil
}

// Fits reports whether a line that Parse took has the code that belongs to it, in constant time.
func (k *Key) Fits(text []byte, l *Line) bool {
	sum := k.sum(text[:len(text)-tailSize])
	return hmac.Equal(sum[:], l.MAC[:])
}

// reader takes a line apart from its beginning. After a failure it reads nothing more.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) begins(name string) bool {
	return !r.failed && bytes.HasPrefix(r.rest,
		[]byte(name))
}

func (r *reader) skip(text string) {
	if !r.begins(text) {
		r.failed = true
		return
	}
	r.rest = r.rest[len(text):]
}

// number reads a number from 1 to most in its one spelling.
func (r *reader) number(name string, most uint64) uint64 {
	r.skip(name)
	n := 0
	for n < len(r.rest) && r.rest[n] >= '0' && r.rest[n] <= '9' {
		n++
	}
	if r.failed || n == 0 || n > 16 || r.rest[0] == '0' {
		r.failed = true
		return 0
	}
	value, err := strconv.ParseUint(string(r.rest[:n]), 10, 64)
	r.failed = err != nil || value > most
	r.rest = r.rest[n:]
	return value
}

// code reads hexadecimal digits in lower case.
func (r *reader) code(name string, to []byte) {
	r.skip(name)
	size := 2 * len(to)
	if r.failed || len(r.rest) <= size || r.rest[size] != '"' {
		r.failed = true
		return
	}
	digits := r.rest[:size]
	_, err := hex.Decode(to, digits)
	r.failed = err != nil || bytes.ContainsAny(digits, "ABCDEF")
	r.rest = r.rest[size+1:]
}

// Unfinished reports whether text, which has no line feed, can be the beginning of the line after
// head, as a crash leaves it: perhaps followed by zero bytes, which file systems put where data was
// on its way.
func Unfinished(text []byte, head Head) bool {
	if text = bytes.TrimRight(text, "\x00"); len(text) > MaxLine {
		return false
	}
	start := strconv.AppendUint([]byte(nameSeq), head.Seq+1, 10)
	start = append(start, nameKey...)
	n := min(len(text), len(start))
	return bytes.Equal(text[:n], start[:n])
}
