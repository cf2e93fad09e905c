// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package bhttp

import (
	"encoding/binary"
	"io"
)

// AppendVarint appends v in the shortest form of a variable-length integer (RFC 9000, section 16).
// v is below 2^62; AppendVarint panics otherwise.
func AppendVarint(dst []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(dst, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(dst, uint16(v)|1<<14)
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(dst, uint32(v)|2<<30)
	case v < 1<<62:
		return binary.BigEndian.AppendUint64(dst, v|3<<62)
	}
	panic("bhttp: integer too large")
}

// VarintSize returns how many bytes the integer has that begins with first: 1, 2, 4 or 8.
func VarintSize(first byte) int { return 1 << (first >> 6) }

// Varint decodes the integer in any of its forms at the beginning of b, which holds all of it, and
// returns how many bytes it has.
func Varint(b []byte) (v uint64, size int) {
	size = VarintSize(b[0])
	v = uint64(b[0] & 0x3f)
	for _, c := range b[1:size] {
		v = v<<8 | uint64(c)
	}
	return v, size
}

// ReadVarint reads a variable-length integer in any of its forms, and returns how many bytes it
// has. The error is io.EOF if there was no byte at all, and io.ErrUnexpectedEOF if the integer was
// cut short.
func ReadVarint(r io.ByteReader) (v uint64, size int, err error) {
	first, err := r.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	size = VarintSize(first)
	v = uint64(first & 0x3f)
	for range size - 1 {
		b, err := r.ReadByte()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, 0, err
		}
		v = v<<8 | uint64(b)
	}
	return v, size, nil
}
