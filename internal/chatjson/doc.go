// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package chatjson knows the JSON of chat completions: it checks requests and answers in place,
// makes small edits of them, writes and reads objects of which only some members are known, and
// makes the events of a stream from a whole answer. Names are exact; a name that is repeated counts
// the last time.
package chatjson
