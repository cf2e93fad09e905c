// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package jsonspan

import (
	"errors"
	"iter"
)

// The helpers here check a text and then hand it to a function of the package, as its users do.

var errKind = errors.New("another kind of value")

// checkKind returns data if it is valid and of that kind, otherwise nil and an error.
func checkKind(data []byte, maxDepth int, kind Kind) ([]byte, error) {
	if err := Valid(data, maxDepth); err != nil {
		return nil, err
	}
	if KindOf(data) != kind {
		return nil, errKind
	}
	return data, nil
}

func checkedMembers(data []byte, maxDepth int) (iter.Seq[Member], error) {
	valid, err := checkKind(data, maxDepth, Object)
	return MembersOf(valid), err
}

func checkedElements(data []byte, maxDepth int) (iter.Seq[[]byte], error) {
	valid, err := checkKind(data, maxDepth, Array)
	return ElementsOf(valid), err
}

func checkedCut(dst, data []byte, maxDepth int, drop func(Member) bool) ([]byte, error) {
	if _, err := checkKind(data, maxDepth, Object); err != nil {
		return dst, err
	}
	return CutOf(dst, data, drop), nil
}
