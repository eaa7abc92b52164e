package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/valyala/fasthttp"
)

// Error is what a client gets: OpenAI's shape with vLLM's types and status codes, or Anthropic's (messages.go) with these codes.
type Error struct {
	Status  int
	Type    string
	Param   string // the field at fault, "" where none
	Message string
}

func (e *Error) Error() string { return e.Message }

func badRequest(param, format string, args ...any) *Error {
	return &Error{http.StatusBadRequest, "BadRequestError", param, fmt.Sprintf(format, args...)}
}

func unavailable() *Error {
	return &Error{http.StatusServiceUnavailable, "ServiceUnavailableError", "", "No instance is serving."}
}

// Kinds of failures behind the API. A Backend's errors that have a method Kind() string returning one of
// these get the status that belongs to it; all others are a 500.
const (
	KindQueueFull   = "queue_full"
	KindNoRoom      = "no_room"
	KindPeerLost    = "peer_lost"
	KindUnavailable = "unavailable"
)

// asError turns any error into what the client gets.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var kind interface{ Kind() string }
	if errors.As(err, &kind) {
		switch kind.Kind() {
		case KindQueueFull:
			return &Error{http.StatusTooManyRequests, "RateLimitError", "", err.Error()}
		case KindPeerLost:
			return &Error{http.StatusInternalServerError, "InternalServerError", "", err.Error()}
		// What could never fit is refused before it gets as far (room): the cluster had more when this was taken.
		case KindUnavailable, KindNoRoom:
			return &Error{http.StatusServiceUnavailable, "ServiceUnavailableError", "", err.Error()}
		}
	}
	return &Error{http.StatusInternalServerError, "InternalServerError", "", err.Error()}
}

// body is the JSON of the error.
func (e *Error) body() []byte {
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    int     `json:"code"`
	}
	in := inner{e.Message, e.Type, nil, e.Status}
	if e.Param != "" {
		in.Param = &e.Param
	}
	b, err := json.Marshal(map[string]inner{"error": in})
	if err != nil {
		return []byte(`{"error":{"message":"cannot encode the error","type":"InternalServerError","param":null,"code":500}}`)
	}
	return b
}

func writeError(ctx *fasthttp.RequestCtx, err error) {
	e := asError(err)
	ctx.Response.Reset()
	ctx.SetStatusCode(e.Status)
	ctx.SetContentType("application/json")
	if !speaksMessages(ctx) {
		ctx.SetBody(e.body())
		return
	}
	id := "req_" + newID()
	ctx.Response.Header.Set("Request-Id", id)
	ctx.SetBody(e.messageBody(id))
}

func writeJSON(ctx *fasthttp.RequestCtx, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		writeError(ctx, fmt.Errorf("cannot encode the answer: %w", err))
		return
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(b)
}
