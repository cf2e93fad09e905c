// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// The most that a Body may hold.
const (
	MaxKeys       = 1_000
	MaxPins       = 10_000
	MaxDataKeys   = 1_000
	MaxConfigKeys = 256 // one for each key id
	MaxOriginSize = 512 // bytes
)

const (
	bodyVersion = 1
	// a body with a signer and configuration keys; one without stays readable for older programs
	bodyVersionConfigs = 2
	// a body in which a configuration offers AES-128-GCM
	bodyVersionAEADs = 3
	dataKeySize      = 32
	seedSize         = 32 // of a configuration key and of the signer
)

// State says how a private key is used.
type State uint8

// The states of a private key. The values are those in the file.
const (
	Primary State = 1 // in use; there is at most one
	Next    State = 2 // made ahead of time; there is at most one
	Retired State = 3 // replaced; it still opens messages that were sealed to it
)

func (s State) String() string {
	switch s {
	case Primary:
		return "primary"
	case Next:
		return "next"
	case Retired:
		return "retired"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Entry is a private key with its dates. Times are UTC in nanoseconds, from 1970 to 2262. A zero
// Time means that it has not happened yet.
type Entry struct {
	State                       State
	Created, Activated, Retired time.Time
	Key                         *RSAKey
}

// Pin is the key of a server that was trusted on first use, or accepted later.
type Pin struct {
	Origin      string   // printable ASCII without spaces; unique among the pins
	Fingerprint [32]byte // SHA-256 of the SubjectPublicKeyInfo
	FirstSeen   time.Time
	Accepted    time.Time // when the user accepted it in place of another; zero if never
}

// DataKey is a key for data at rest. The DataKey with the highest generation is in use.
type DataKey struct {
	Generation uint32 // ascending
	Key        []byte // 32 bytes
	Created    time.Time
}

// ConfigKey is the private key of a key configuration of Oblivious HTTP.
type ConfigKey struct {
	ID               uint8 // unique among the keys
	KEM              uint16
	Seed             []byte // 32 bytes
	Created, Retired time.Time
	AES128           bool // the configuration offers AES-128-GCM beside AES-256-GCM
}

// Body is the secret part of a keystore. It is not safe for concurrent use.
//
// Invariant: after Open, the secrets are spans of one buffer, which the Body owns. Keys that the
// caller adds keep buffers of their own.
type Body struct {
	Generation uint64    // of the file: each save adds one
	Rotations  uint64    // how often the primary key was replaced
	Rotated    time.Time // when that happened last
	Keys       []Entry
	Pins       []Pin
	DataKeys   []DataKey
	// seed of the Ed25519 key that signs the list of key configurations; nil if there is none
	Signer     []byte
	ConfigKeys []ConfigKey // oldest first; none without a Signer

	memory *locked.Buffer // nil if the caller made the Body
}

// Wipe clears every private key and data key, those that the caller added included, and empties the
// Body. Nobody may use anything that came from it any more, because its memory is gone.
func (b *Body) Wipe() {
	for _, e := range b.Keys {
		if e.Key != nil {
			e.Key.Wipe()
		}
	}
	for _, d := range b.DataKeys {
		clear(d.Key)
	}
	clear(b.Signer)
	for _, c := range b.ConfigKeys {
		clear(c.Seed)
	}
	if b.memory != nil {
		b.memory.Destroy()
	}
	*b = Body{}
}

// The form of the body, all numbers big-endian:
//
//	version uint8, generation uint64, rotations uint64, rotated time
//	keys     uint16 count, each: state uint8, three times, eight integers (uint16 length, bytes)
//	pins     uint16 count, each: origin (uint16 length, bytes), fingerprint [32], two times
//	dataKeys uint16 count, each: generation uint32, key [32], time
//	only in version 2 and 3:
//	signer [32]
//	configs  uint16 count, each: id uint8, kem uint16, seed [32], two times,
//	         only in version 3: aeads uint8, 0 or 1
//
// aeads says whether a configuration offers AES-256-GCM alone (0), as all do in version 2, or
// AES-128-GCM as well (1).
//
// A time is an int64 of nanoseconds since 1970, or 0 for none.

// The sizes of the elements without the parts of variable length.
const (
	keyEntrySize     = 1 + 3*8 + 8*2
	pinEntrySize     = 2 + 32 + 2*8
	dataKeyEntrySize = 4 + dataKeySize + 8
	configEntrySize  = 1 + 2 + seedSize + 2*8
)

// size returns the exact encoded size, so that marshal never outgrows a buffer with secrets in it.
func (b *Body) size() int {
	n := 1 + 8 + 8 + 8 + 3*2
	for _, e := range b.Keys {
		n += keyEntrySize
		for _, field := range e.Key.fields() {
			n += len(*field)
		}
	}
	for _, p := range b.Pins {
		n += pinEntrySize + len(p.Origin)
	}
	n += len(b.DataKeys) * dataKeyEntrySize
	if b.Signer != nil {
		n += seedSize + 2 + len(b.ConfigKeys)*configEntrySize
	}
	if b.version() == bodyVersionAEADs {
		n += len(b.ConfigKeys)
	}
	return n
}

// version is the oldest one that has room for what b holds, so that older programs read as much as
// they can.
func (b *Body) version() byte {
	switch {
	case b.Signer == nil:
		return bodyVersion
	case slices.ContainsFunc(b.ConfigKeys, func(c ConfigKey) bool { return c.AES128 }):
		return bodyVersionAEADs
	}
	return bodyVersionConfigs
}

// marshal encodes the body. The caller destroys the buffer.
func (b *Body) marshal(policy locked.Policy) (*locked.Buffer, error) {
	if err := b.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	memory, err := locked.NewWith(policy, b.size())
	if err != nil {
		return nil, err
	}
	out := memory.Bytes()[:0]
	u16 := func(n int) { out = binary.BigEndian.AppendUint16(out, uint16(n)) }
	u64 := func(n uint64) { out = binary.BigEndian.AppendUint64(out, n) }
	at := func(t time.Time) {
		if t.IsZero() {
			u64(0)
		} else {
			u64(uint64(t.UnixNano()))
		}
	}
	version := b.version()
	out = append(out, version)
	u64(b.Generation)
	u64(b.Rotations)
	at(b.Rotated)
	u16(len(b.Keys))
	for _, e := range b.Keys {
		out = append(out, byte(e.State))
		at(e.Created)
		at(e.Activated)
		at(e.Retired)
		for _, field := range e.Key.fields() {
			u16(len(*field))
			out = append(out, *field...)
		}
	}
	u16(len(b.Pins))
	for _, p := range b.Pins {
		u16(len(p.Origin))
		out = append(out, p.Origin...)
		out = append(out, p.Fingerprint[:]...)
		at(p.FirstSeen)
		at(p.Accepted)
	}
	u16(len(b.DataKeys))
	for _, d := range b.DataKeys {
		out = binary.BigEndian.AppendUint32(out, d.Generation)
		out = append(out, d.Key...)
		at(d.Created)
	}
	if b.Signer == nil {
		return memory, nil
	}
	out = append(out, b.Signer...)
	u16(len(b.ConfigKeys))
	for _, c := range b.ConfigKeys {
		out = append(out, c.ID)
		u16(int(c.KEM))
		out = append(out, c.Seed...)
		at(c.Created)
		at(c.Retired)
		switch {
		case version != bodyVersionAEADs:
		case c.AES128:
			out = append(out, 1)
		default:
			out = append(out, 0)
		}
	}
	return memory, nil
}

// parseBody takes ownership of memory, and destroys it on failure.
func parseBody(memory *locked.Buffer) (*Body, error) {
	b := &Body{memory: memory}
	r := reader{s: memory.Bytes()}
	version := r.u8()
	if version < bodyVersion || version > bodyVersionAEADs {
		b.Wipe()
		return nil, fmt.Errorf("%w: body version %d", ErrVersion, version)
	}
	b.Generation = r.u64()
	b.Rotations = r.u64()
	b.Rotated = r.time()
	for range r.count(MaxKeys, keyEntrySize) {
		e := Entry{State: State(r.u8()), Created: r.time(), Activated: r.time(), Retired: r.time(),
			Key: new(RSAKey)}
		for _, field := range e.Key.fields() {
			*field = r.bytes(int(r.u16()))
		}
		b.Keys = append(b.Keys, e)
	}
	for range r.count(MaxPins, pinEntrySize) {
		p := Pin{Origin: string(r.bytes(int(r.u16())))}
		copy(p.Fingerprint[:], r.bytes(len(p.Fingerprint)))
		p.FirstSeen, p.Accepted = r.time(), r.time()
		b.Pins = append(b.Pins, p)
	}
	for range r.count(MaxDataKeys, dataKeyEntrySize) {
		b.DataKeys = append(b.DataKeys, DataKey{r.u32(), r.bytes(dataKeySize), r.time()})
	}
	if version >= bodyVersionConfigs {
		b.Signer = r.bytes(seedSize)
		for range r.count(MaxConfigKeys, configEntrySize) {
			c := ConfigKey{ID: r.u8(), KEM: r.u16(), Seed: r.bytes(seedSize), Created: r.time(),
				Retired: r.time()}
			if version == bodyVersionAEADs {
				c.AES128 = r.bool()
			}
			b.ConfigKeys = append(b.ConfigKeys, c)
		}
	}
	if r.failed || !r.s.Empty() {
		b.Wipe()
		return nil, fmt.Errorf("%w: the body is cut or too long", ErrDamaged)
	}
	if b.version() != version { // a body has one encoding
		b.Wipe()
		return nil, fmt.Errorf("%w: body version %d without what it is for", ErrDamaged, version)
	}
	if err := b.validate(); err != nil {
		b.Wipe()
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return b, nil
}

// reader decodes the body. Once failed is set, every value that it returns is zero.
type reader struct {
	s      cryptobyte.String
	failed bool
}

// bytes returns the next n bytes, as a span of the body.
func (r *reader) bytes(n int) []byte {
	var out []byte
	if r.failed || !r.s.ReadBytes(&out, n) {
		r.failed = true
		return make([]byte, n)
	}
	return out
}

func (r *reader) u8() uint8   { return r.bytes(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.bytes(8)) }

// bool reads a byte that is 0 or 1.
func (r *reader) bool() bool {
	b := r.u8()
	r.failed = r.failed || b > 1
	return b == 1
}

// count reads the number of elements, each of which has at least size bytes. A number that is
// beyond most, or that the rest of the body cannot hold, is a failure.
func (r *reader) count(most, size int) int {
	n := int(r.u16())
	if n > most || n > len(r.s)/size {
		r.failed = true
		return 0
	}
	return n
}

func (r *reader) time() time.Time {
	n := int64(r.u64())
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

var (
	minTime = time.Unix(0, 1)
	maxTime = time.Unix(0, math.MaxInt64)
)

// validate checks rules that both a file and a caller may break. RSAKey.PrivateKey checks whether
// the integers of a key belong together.
func (b *Body) validate() error {
	if len(b.Keys) > MaxKeys || len(b.Pins) > MaxPins || len(b.DataKeys) > MaxDataKeys {
		return errors.New("too many keys, pins or data keys")
	}
	times := []time.Time{b.Rotated}
	seen := make(map[string]bool)
	states := make(map[State]int)
	for _, e := range b.Keys {
		if e.Key == nil {
			return errors.New("an entry without a key")
		}
		if err := e.Key.checkPublic(); err != nil {
			return err
		}
		for _, field := range e.Key.fields() {
			if (*field)[0] == 0 {
				return errors.New("an integer with leading zeros")
			}
		}
		modulus := string(e.Key.N)
		if seen[modulus] {
			return errors.New("a private key occurs twice")
		}
		seen[modulus] = true
		states[e.State]++
		times = append(times, e.Created, e.Activated, e.Retired)
	}
	if states[Primary]+states[Next]+states[Retired] != len(b.Keys) || states[Primary] > 1 ||
		states[Next] > 1 {
		return errors.New("an unknown state of a key, or more than one primary or next key")
	}
	clear(seen)
	for _, p := range b.Pins {
		if p.Origin == "" || len(p.Origin) > MaxOriginSize ||
			strings.ContainsFunc(p.Origin, func(r rune) bool {
				return r <= ' ' || r > '~'
			}) {
			return errors.New("an origin that is empty, too long or not printable ASCII")
		}
		if seen[p.Origin] {
			return errors.New("an origin is pinned twice")
		}
		seen[p.Origin] = true
		times = append(times, p.FirstSeen, p.Accepted)
	}
	for i, d := range b.DataKeys {
		if len(d.Key) != dataKeySize {
			return errors.New("a data key that does not have 32 bytes")
		}
		if i > 0 && d.Generation <= b.DataKeys[i-1].Generation {
			return errors.New("data key generations do not ascend")
		}
		times = append(times, d.Created)
	}
	configTimes, err := b.validateConfigs()
	if err != nil {
		return err
	}
	times = append(times, configTimes...)
	for _, t := range times {
		if !t.IsZero() && (t.Before(minTime) || t.After(maxTime)) {
			return errors.New("a time before 1970 or after 2262")
		}
	}
	return nil
}

// validateConfigs checks the signer and the configuration keys, and returns the times of the
// latter.
func (b *Body) validateConfigs() (times []time.Time, err error) {
	switch {
	case b.Signer == nil && len(b.ConfigKeys) > 0:
		return nil, errors.New("configuration keys without a signer")
	case b.Signer != nil && len(b.Signer) != seedSize:
		return nil, errors.New("a seed that does not have 32 bytes")
	case len(b.ConfigKeys) > MaxConfigKeys:
		return nil, errors.New("too many configuration keys")
	}
	var seen [256]bool
	for _, c := range b.ConfigKeys {
		if len(c.Seed) != seedSize {
			return nil, errors.New("a seed that does not have 32 bytes")
		}
		if seen[c.ID] {
			return nil, errors.New("a key id occurs twice")
		}
		seen[c.ID] = true
		times = append(times, c.Created, c.Retired)
	}
	return times, nil
}
