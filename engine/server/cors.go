package server

import "github.com/valyala/fasthttp"

// allowOrigins lets pages of every origin use the API, as vLLM does by default. A browser asks first, and
// sends no key with that question.
func allowOrigins(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		asked := ctx.Request.Header.Peek("Access-Control-Request-Method")
		if !ctx.IsOptions() || len(asked) == 0 {
			next(ctx)
			allowOrigin(&ctx.Response.Header)
			return
		}
		h := &ctx.Response.Header
		allowOrigin(h)
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE, OPTIONS")
		h.SetBytesV("Access-Control-Allow-Headers", ctx.Request.Header.Peek("Access-Control-Request-Headers"))
		h.Set("Access-Control-Max-Age", "600")
	}
}

func allowOrigin(h *fasthttp.ResponseHeader) { h.Set("Access-Control-Allow-Origin", "*") }
