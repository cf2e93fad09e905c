// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"time"
)

// The file has records of one size, each with a checksum. The first is its header.
const recordSize = 100

type recordKind byte

const (
	kindHeader  recordKind = 1 // id is magic, client the name of this version of the file
	kindClaim   recordKind = 2
	kindRelease recordKind = 3
	// a claim of an earlier version of the file; age is when its life ends
	kindKept recordKind = 4
	kindGone recordKind = 5 // exchanges that ended from until to now are forgotten
)

var magic = [32]byte([]byte("sealedchat replays, version 1\n\x00\x00"))

// record is one line of the file. Times are Unix nanoseconds.
type record struct {
	kind       recordKind
	released   bool
	synced     uint32 // so many records of the file were on the disk when this one was written
	until, now int64
	age        time.Duration
	id, client [32]byte // client is zero in the second protocol
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r *record) appendTo(b []byte) []byte {
	start := len(b)
	released := byte(0)
	if r.released {
		released = 1
	}
	b = append(b, byte(r.kind), released, 0, 0)
	b = binary.BigEndian.AppendUint32(b, r.synced)
	b = binary.BigEndian.AppendUint64(b, uint64(r.until))
	b = binary.BigEndian.AppendUint64(b, uint64(r.now))
	b = binary.BigEndian.AppendUint64(b, uint64(r.age))
	b = append(b, r.id[:]...)
	b = append(b, r.client[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

var (
	errChecksum = errors.New("wrong checksum")
	errUnknown  = errors.New("written by a later version")
)

// parse reads a record of recordSize bytes.
func (r *record) parse(b []byte) error {
	sum := b[recordSize-4 : recordSize]
	if crc32.Checksum(b[:recordSize-4], castagnoli) != binary.BigEndian.Uint32(sum) {
		return errChecksum
	}
	*r = record{
		kind: recordKind(b[0]), released: b[1] == 1, synced: binary.BigEndian.Uint32(b[4:]),
		until: int64(binary.BigEndian.Uint64(b[8:])), now: int64(binary.BigEndian.Uint64(b[16:])),
		age: time.Duration(binary.BigEndian.Uint64(b[24:])),
		id:  [32]byte(b[32:64]), client: [32]byte(b[64:96]),
	}
	if r.kind < kindHeader || r.kind > kindGone || b[1] > 1 || b[2] != 0 || b[3] != 0 {
		return errUnknown
	}
	return nil
}

func (r *record) exchange() bool { return r.client == [32]byte{} }

// nanoseconds is t in the file, whose years end at 1678 and 2262.
func nanoseconds(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}
