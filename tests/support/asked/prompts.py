"""Prompts whose domain people agree on; none of them is an exemplar of a shipped policy."""

from __future__ import annotations

LABELLED = (
    (
        "medical",
        "My mother takes metformin and lisinopril. Her doctor wants to add furosemide, are her kidneys at risk?",
    ),
    ("medical", "Summarize this radiology report: CT of the abdomen shows a 3 cm lesion in the right hepatic lobe."),
    ("medical", "Is a rash after starting penicillin dangerous?"),
    ("medical", "I have had a headache for three days and my vision is blurry. What could it be?"),
    ("medical", "pt c/o SOB x3d, hx CHF, EF 25%, on lasix 40 BID. plan?"),
    ("medical", "Which vaccines does a newborn need in the first year?"),
    ("legal", "We were sued for negligence after a customer slipped in our store; what defences are there?"),
    ("legal", "Compare the termination clauses in these two employment agreements."),
    ("legal", "What is the statute of limitations for a personal injury claim in California?"),
    ("legal", "My ex-wife wants to change the custody arrangement. What can I do?"),
    ("compliance", "Do we need to file a report for a wire of 12,000 dollars to a shell company?"),
    ("compliance", "Map our access-control policy to ISO 27001 Annex A."),
    ("compliance", "Can we transfer personal data of EU customers to a processor in India?"),
    ("support-chat", "The package says delivered but I never got it."),
    ("support-chat", "I want my money back, the headphones broke after two days."),
    ("support-chat", "how can i update my credit card details"),
    ("support-chat", "Hello, my parcel with the shoes is a week late, can you tell me where my order is?"),
    ("support-chat", "I cannot log in any more, the site says my password is wrong. How do I reset it?"),
    ("", "Write a poem about autumn in Vienna."),
    ("", "What is the capital of Australia?"),
    ("", "Recommend a good pasta recipe with mushrooms."),
    ("", "Translate to French: the weather is nice today."),
    ("", "Who won the football world cup in 2010?"),
    ("", "Summarize the plot of Hamlet."),
    ("", "Plan a three-day trip to Lisbon for a family with two kids."),
    ("", "How do black holes form?"),
)
