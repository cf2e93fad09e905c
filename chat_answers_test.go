// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckMetadata(t *testing.T) {
	const id, other = "0e3b1a52-7c5d-4f0e-9a43-00112233aabb", "0e3b1a52-7c5d-4f0e-9a43-00112233aabc"
	payload := func(v string) string { return `{"payload_id":` + v + `}` }
	for meta, want := range map[string]error{
		`null`: nil, `{}`: nil, `[]`: nil, `"x"`: nil, `1`: nil, `["payload_id","` + other + `"]`: nil,
		payload(`"` + id + `"`): nil, payload(`"` + strings.ToUpper(id) + `"`): nil, payload(`"\u0030` + id[1:] + `"`): nil,
		payload(`"` + other + `"`): ErrReplay, payload(`"` + strings.ToUpper(other) + `"`): ErrReplay, payload(`"\u0030` + other[1:] + `"`): ErrReplay,
		payload(`"` + id + `","payload_id":"` + other + `"`): ErrReplay, payload(`"` + other + `","payload_id":"` + id + `"`): nil,
		`{"payload\u005fid":"` + other + `"}`: ErrReplay, `{"Payload_ID":"` + other + `"}`: nil, `{"x":{"payload_id":"` + other + `"}}`: nil,
		payload(`null`): nil, payload(`7`): nil, payload(`""`): nil, payload(`"openai-compat-1"`): nil, payload(`"` + other[1:] + `"`): nil,
		payload(`"{` + other + `}"`): nil, payload(`" ` + other + `"`): nil, payload(`["` + other + `"]`): nil, payload(`"` + strings.ReplaceAll(other, "-", "") + `"`): nil,
	} {
		for _, answer := range []string{answerWith("_metadata", meta), `{"_metadata":` + meta + `,"error":{"message":"x"}}`} {
			err := checkCompletion([]byte(answer), id, TierHigh)
			_, isAPI := errors.AsType[*APIError](err)
			if errors.Is(err, ErrReplay) != (want != nil) || (want == nil && err != nil && !isAPI) {
				t.Errorf("%s: %v, want %v", meta, err, want)
			}
		}
	}
}

func TestTierDowngrade(t *testing.T) {
	tiers := []SecurityTier{"", TierStandard, TierHigh, TierMaximum}
	for asked, want := range tiers {
		for got := 1; got < len(tiers); got++ {
			answer := answerWith("_metadata", `{"security_tier":"`+string(tiers[got])+`"}`)
			err := checkCompletion([]byte(answer), newUUID(), want)
			if lower := asked != 0 && got < asked; errors.Is(err, ErrTierDowngrade) != lower || (err == nil) == lower {
				t.Errorf("asked %q, got %q: %v", want, tiers[got], err)
			}
		}
		for value, silent := range map[string]bool{ // says nothing, or names no tier that is known
			`null`: true, `1`: true, `""`: true, `{}`: true, `["standard"]`: true,
			`"none"`: false, `"HIGH"`: false, `" maximum"`: false, `"` + strings.Repeat("x", 2000) + `"`: false, `"\u0073tandar\u0064s"`: false,
		} {
			err := checkCompletion([]byte(answerWith("_metadata", `{"security_tier":`+value+`}`)), newUUID(), want)
			if refused := want != "" && !silent; errors.Is(err, ErrTierDowngrade) != refused {
				t.Errorf("asked %q, got %.20s: %v", want, value, err)
			}
		}
	}
}
