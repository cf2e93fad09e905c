// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package sealedchat

const raceSlowdown = 8 // of a save, under the race detector
