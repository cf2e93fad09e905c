// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tdx-guest/abi"
	pb "github.com/google/go-tdx-guest/proto/tdx"
)

// Sizes of quotes' parts. Version 5 says in 6 bytes which body follows, and how long it is.
const (
	headerSize     = 48
	descriptorSize = 6
	bodySize10     = 584
	bodySize15     = 648
	lengthSize     = 4
)

// quote is a quote in the library's form, and what this package looks at in it.
type quote struct {
	library any // *pb.QuoteV4 or *pb.QuoteV5
	guest   guest
	signed  *pb.Ecdsa256BitQuoteV4AuthData
}

// guest is what a quote says of a guest and of the TDX module under it.
type guest struct {
	teeTCBSVN, seamSigner, seamAttributes []byte
	attributes, mrtd, reportData          []byte
	rtmrs                                 [][]byte
	serviceTD                             []byte // nil before TDX 1.5
}

// body is what the library's bodies of both versions have.
type body interface {
	GetTeeTcbSvn() []byte
	GetMrSignerSeam() []byte
	GetSeamAttributes() []byte
	GetTdAttributes() []byte
	GetMrTd() []byte
	GetReportData() []byte
	GetRtmrs() [][]byte
}

func guestOf(b body, serviceTD []byte) guest {
	return guest{
		teeTCBSVN: b.GetTeeTcbSvn(), seamSigner: b.GetMrSignerSeam(),
		seamAttributes: b.GetSeamAttributes(), attributes: b.GetTdAttributes(), mrtd: b.GetMrTd(),
		reportData: b.GetReportData(), rtmrs: b.GetRtmrs(), serviceTD: serviceTD,
	}
}

// parseQuote reads a quote. Behind it there may be zeros: hardware pads some.
func parseQuote(evidence []byte) (*quote, error) {
	end, err := quoteEnd(evidence)
	if err != nil {
		return nil, err
	}
	if !allZero(evidence[end:]) {
		return nil, errors.New("there is something behind the quote")
	}
	evidence = evidence[:end]
	parsed, err := abi.QuoteToProto(evidence)
	if err != nil {
		return nil, &refusal{"the quote is malformed", err}
	}
	again, err := abi.QuoteToAbiBytes(parsed)
	if err != nil {
		return nil, &refusal{"the quote is malformed", err}
	}
	if !bytes.Equal(again, evidence) {
		return nil, errors.New("the quote has bytes in places that mean nothing")
	}
	q := &quote{library: parsed}
	switch p := parsed.(type) {
	case *pb.QuoteV4:
		b := p.GetTdQuoteBody()
		q.signed = p.GetSignedData()
		q.guest = guestOf(b, nil)
	case *pb.QuoteV5:
		b := p.GetTdQuoteBodyDescriptor().GetTdQuoteBodyV5()
		q.signed = p.GetSignedData()
		q.guest = guestOf(b, b.GetMrServiceTd())
	default:
		return nil, errors.New("the quote has a version that is not known")
	}
	if len(q.guest.rtmrs) != 4 {
		return nil, errors.New("the quote is malformed")
	}
	return q, nil
}

// quoteEnd says where a quote ends, from the lengths in it. The library takes some of them on
// trust.
func quoteEnd(evidence []byte) (int, error) {
	if len(evidence) < headerSize+descriptorSize+bodySize10+lengthSize {
		return 0, errors.New("the quote is too short")
	}
	at := headerSize + bodySize10
	switch version := binary.LittleEndian.Uint16(evidence); version {
	case 4:
	case 5:
		kind := binary.LittleEndian.Uint16(evidence[headerSize:])
		size := binary.LittleEndian.Uint32(evidence[headerSize+2:])
		switch {
		case kind == 2 && size == bodySize10:
			at += descriptorSize
		case kind == 3 && size == bodySize15:
			at = headerSize + descriptorSize + bodySize15
		default:
			return 0, errors.New("the quote is not of a TDX 1.0 or 1.5 guest")
		}
	default:
		return 0, fmt.Errorf("the quote has version %d, want 4 or 5", version)
	}
	if len(evidence) < at+lengthSize {
		return 0, errors.New("the quote is too short")
	}
	size := uint64(binary.LittleEndian.Uint32(evidence[at:]))
	if size > uint64(len(evidence)-at-lengthSize) {
		return 0, errors.New("the quote is too short")
	}
	end := at + lengthSize + int(size)
	if !wellFormed(evidence[at+lengthSize : end]) {
		return 0, errors.New("the lengths in the quote contradict each other")
	}
	return end, nil
}

// wellFormed tells whether the lengths in what stands behind a quote's body add up. These are the
// signature, the key that made it, and a block of type, size and content, which is the quoting
// enclave's report, its signature, data of the enclave's own, and a block with certificates.
func wellFormed(signed []byte) bool {
	const signature, key, report = 64, 64, 384
	inner, ok := block(signed, signature+key)
	if !ok || len(inner) < report+signature+2 {
		return false
	}
	own := int(binary.LittleEndian.Uint16(inner[report+signature:]))
	_, ok = block(inner, report+signature+2+own)
	return ok
}

// block returns the content of the block that stands at the end of b, from at on.
func block(b []byte, at int) (content []byte, ok bool) {
	const head = 2 + lengthSize
	if len(b) < at+head {
		return nil, false
	}
	size := uint64(binary.LittleEndian.Uint32(b[at+2:]))
	return b[at+head:], size == uint64(len(b)-at-head)
}

// The bits of TD attributes that a guest may have: none of them opens it to the host. They are LASS
// (27), SEPT_VE_DISABLE (28), protection keys (30), key locker (31) and performance monitoring
// (63). SEPT_VE_DISABLE is not required: clouds have guests without it, and what it is for is the
// business of the guest's kernel, which is measured.
const harmlessAttributes = 1<<27 | 1<<28 | 1<<30 | 1<<31 | 1<<63

const (
	debugAttribute     = 1 << 0
	migrationAttribute = 1 << 29
)

// check refuses guests that somebody outside may look into.
func (g *guest) check() error {
	attributes := binary.LittleEndian.Uint64(g.attributes)
	switch {
	case attributes&debugAttribute != 0:
		return errors.New("the guest may be debugged: its operator can read its memory")
	case attributes&migrationAttribute != 0 || !allZero(g.serviceTD):
		return errors.New("the guest may be migrated, by a service that nobody measured here")
	case attributes&^uint64(harmlessAttributes) != 0:
		return fmt.Errorf("the guest has attributes that are not known: %#x", attributes)
	}
	return nil
}

// registers are MRTD and the RTMRs.
func (g *guest) registers() [][]byte { return append([][]byte{g.mrtd}, g.rtmrs...) }

// measurement is MRTD and the RTMRs in hex, with commas between them.
func (g *guest) measurement() string {
	var parts []string
	for _, r := range g.registers() {
		parts = append(parts, hex.EncodeToString(r))
	}
	return strings.Join(parts, ",")
}
