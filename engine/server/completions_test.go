package server

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

type textLogprobs struct {
	Offset   []int                 `json:"text_offset"`
	Logprobs []*float64            `json:"token_logprobs"`
	Tokens   []string              `json:"tokens"`
	Top      []map[string]*float64 `json:"top_logprobs"`
}

type textChoice struct {
	Index      int           `json:"index"`
	Text       string        `json:"text"`
	Logprobs   *textLogprobs `json:"logprobs"`
	Finish     *string       `json:"finish_reason"`
	StopReason any           `json:"stop_reason"`
}

// completion is an answer or a chunk of /v1/completions.
type completion struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []textChoice `json:"choices"`
	Usage   *usage       `json:"usage"`
}

type tokenEntry struct {
	Token   string       `json:"token"`
	Logprob float64      `json:"logprob"`
	Bytes   []int        `json:"bytes"`
	Top     []tokenEntry `json:"top_logprobs"`
}

type chatText struct {
	Role    string  `json:"role"`
	Content *string `json:"content"`
}

type chatChoice struct {
	Index    int       `json:"index"`
	Message  *chatText `json:"message"`
	Delta    *chatText `json:"delta"`
	Logprobs *struct {
		Content []tokenEntry `json:"content"`
	} `json:"logprobs"`
	Finish     *string `json:"finish_reason"`
	StopReason any     `json:"stop_reason"`
}

// chatAnswer is an answer or a chunk of /v1/chat/completions.
type chatAnswer struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []chatChoice `json:"choices"`
	Usage   *usage       `json:"usage"`
}
