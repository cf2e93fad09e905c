// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package sealedchat

const raceSlowdown = 1
