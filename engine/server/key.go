package server

import (
	"crypto/subtle"
	"net/http"
	"strings"

	"github.com/valyala/fasthttp"
)

// keylessBody is how large the body of a request without the API key may be, in bytes, to be read before the
// request is refused, so that its connection can go on.
const keylessBody = 16 << 10

// hasKey checks the bearer token, if one is needed, or the header that Anthropic's clients put the key in. Both do for all
// paths, since such a client may ask for models too; of one that sends both, one of them.
func (s *Server) hasKey(h *fasthttp.RequestHeader) bool {
	if s.cfg.APIKey == "" {
		return true
	}
	scheme, key, _ := strings.Cut(string(h.Peek("Authorization")), " ")
	return strings.EqualFold(scheme, "Bearer") && s.isKey([]byte(key)) || s.isKey(h.Peek("X-Api-Key"))
}

func (s *Server) isKey(key []byte) bool {
	return subtle.ConstantTimeCompare(key, []byte(s.cfg.APIKey)) == 1
}

// headerReceived is called before a request's body is read, all of which would be held in memory: that needs the
// key. Without it the handler gets the request as one that has no body and is the connection's last, since what
// comes after its header is no other request.
func (s *Server) headerReceived(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	const chunked = -1
	if n := h.ContentLength(); (n > keylessBody || n == chunked) && !s.hasKey(h) {
		h.SetContentLength(0)
		h.SetConnectionClose()
		h.Del("Expect") // nobody waits for the body
	}
	return fasthttp.RequestConfig{}
}

// authorize wants the key for everything but /health, /metrics and the dashboard's files, which hold nothing of the cluster.
func (s *Server) authorize(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		if p := path(ctx); p == "/health" || p == "/metrics" || dashboard[p] != nil || s.hasKey(&ctx.Request.Header) {
			next(ctx)
			return
		}
		s.refuse(ctx, &Error{http.StatusUnauthorized, "AuthenticationError", "", "The API key is missing or wrong."})
		ctx.Response.Header.Set("WWW-Authenticate", "Bearer")
		if ctx.Request.Header.ConnectionClose() {
			linger(ctx)
		}
	}
}
