"""Every word of the synthetic sitcom: what is said, and how voices and faces are described. All wording is ours.

Two domains with the same labels and topics but no phrase in common: ``studio`` is an American sitcom, ``wild`` a street
in Britain with other captions. Nothing here is a probability: `script` decides how often a phrase is used, and the
earlier a cue or a caption word stands in its bank, the more often.

How phrases are written: lower case unless the word always has a capital, and no final mark except ``?``, which says
that the phrase is a question. ``{thing}`` stands for a noun phrase of the topic, ``{who}`` for somebody of the cast who
is not in the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def _bank(text: str) -> tuple[str, ...]:
    """Phrases separated by slashes -> tuple; line breaks inside a phrase are spaces."""
    phrases = tuple(" ".join(phrase.split()) for phrase in text.split("/"))
    if not all(phrases) or len(set(phrases)) != len(phrases):
        raise ValueError(f"empty or repeated phrase in the bank that starts with {phrases[0]!r}")
    return phrases


@dataclass(frozen=True)
class Topic:
    """What people talk about.

    Attributes:
        things: noun phrases that fit after "I can't stop thinking about".
        statements: remarks that carry no emotion by themselves and also work as an echo question.
        questions: the same, as questions.
    """

    things: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """The words of one domain.

    Attributes:
        openers: label -> interjections with their own mark; ``any`` fits every label.
        cues: label -> phrases that carry the emotion, most used first.
        leading, trailing: label -> sentences, before or after the line, that give away irony, teasing or a brave face.
        hedges: words before a statement that say nothing about the emotion.
        topics: topic -> its phrases.
        voice, face: label or ``vague`` -> (adjectives after "sounds"/"looks", details), most used first.
        audio, video: caption templates with ``{subject}``, ``{word}`` and ``{detail}``.
        sure, unsure: how a caption names the person; an unsure one is a warning that the caption is wrong.
    """

    openers: Mapping[str, tuple[str, ...]]
    cues: Mapping[str, tuple[str, ...]]
    leading: Mapping[str, tuple[str, ...]]
    trailing: Mapping[str, tuple[str, ...]]
    hedges: tuple[str, ...]
    topics: Mapping[str, Topic]
    voice: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    face: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    audio: tuple[str, ...]
    video: tuple[str, ...]
    sure: tuple[str, ...]
    unsure: tuple[str, ...]


# --------------------------------------------------------------------------------------------------------------- studio

_STUDIO_OPENERS = {
    "any": _bank("""
        Well, / So, / Okay, / Yeah, / Look, / Um, / Oh, / Hey, / Listen, / You know, / I mean, / Anyway, / Uh, / Hmm,
        / All right, / See,
    """),
    "neutral": _bank("Right, / Sure, / Let's see, / Fine, / Now, / Mm-hmm, / Yep, / Nope, / Actually, / By the way,"),
    "surprise": _bank("""
        Oh my God! / Wow! / Whoa! / Wait, / Oh! / Huh! / Hold on, / My goodness! / Holy cow! / Wow, / What the...
        / Good Lord!
    """),
    "fear": _bank("""
        Oh no! / Uh-oh. / Oh God, / Oh dear, / Shh! / Oh boy, / Please, / Careful! / Oh no, no, no! / Quick, / Wait!
        / Okay, okay,
    """),
    "sadness": _bank("""
        Oh, honey, / Aw, man, / Oh well, / Oh no, / Oh, sweetie, / Gosh, / Oh... / Oh, man, / Boy, / Sniff... / Aw, no,
        / Oh, buddy,
    """),
    "joy": _bank("""
        Aww, / Yay! / Ha! / Oh my gosh! / Hey, hey! / Woo-hoo! / Yes! / Ooh, / Oh, wow! / Hooray! / Hi! / Mmm,
    """),
    "disgust": _bank("""
        Ugh, / Eww! / Ugh! / Yuck! / Oh, gross! / Eww, / Ick, / Blech! / Bleh, / Good grief, / Phew, / Oh, yuck,
    """),
    "anger": _bank("""
        Hey! / Oh, come on! / Dammit! / Excuse me! / Argh! / You know what? / Seriously? / For crying out loud!
        / Enough! / That's it! / No! / Oh, please!
    """),
}

_STUDIO_CUES = {
    "neutral": _bank("""
        I don't know / okay then / all right / I guess so / let me check / hang on a second / I'll be right back
        / here you go / that makes sense / sounds fine to me / let me think about it / I have to go / give me a minute
        / that's what I heard / I'm just saying / what time is it? / where did you put it? / how does that work?
        / so what's the plan? / I'll take care of it / we should get going / it depends / let's just sit down
        / I'll call you later / go ahead / no, thanks / that's up to you / maybe tomorrow / I was just about to leave
        / what do you mean? / I'm on my way / it's on the table / he's in the other room / she'll be here soon
        / can you hand me that? / you can sit here / do you want some coffee? / do you need a ride?
        / I was going to say the same thing / that's one way to do it / it's the second door on the left
        / just put it over there / I think it's upstairs / we can talk about it later / I usually take the bus
        / let's see what happens / as far as I know / I haven't decided / that could work / who told you that?
        / it's around the corner / let me get my coat / you go first / I'll have the same / same as always
        / nobody said anything / it's about four blocks from here / I wrote it down somewhere / can I borrow a pen?
        / when did you get here? / we've got about an hour / that's not what I meant / I'll ask around
        / hold this for a second / I need to make a phone call / let's order something / I'm looking for my keys
        / which one is yours? / I'll let you know / it was a long time ago / I've met him once or twice
        / it's nothing special / take a left at the light / he said he would call / so that's how you spell it
        / I already told them / we could go either way / I was just thinking about {thing}
        / we still need to talk about {thing} / can you remind me about {thing}? / this is about {thing}
        / I have a question about {thing} / I read something about {thing} / has anybody asked about {thing}?
        / you can tell me about {thing} later / let's go over {thing} again / somebody mentioned {thing}
        / I made a list for {thing} / what did they say about {thing}? / we can deal with {thing} tomorrow
        / I'm calling about {thing} / so, getting back to {thing}
    """),
    "surprise": _bank("""
        are you serious? / no way / I can't believe it / what? / you did what? / come again? / since when?
        / I had no idea / how is that possible? / that's unbelievable / I did not see that coming / you're kidding
        / get out of here / really? / you're getting married? / are you kidding me? / where did you come from?
        / I thought you were in Boston / say that again / who did you say? / that can't be right / I am speechless
        / nobody told me / what on earth? / you never told me that / how did you do that? / is that really you?
        / I don't believe my eyes / that was fast / when did this happen? / you mean all this time?
        / I almost dropped my coffee / you could have warned me / well, that's a twist / look who's here
        / you two know each other? / that's a first / I would never have guessed / that came out of nowhere
        / what are you doing here? / he said yes? / she quit? / you're pregnant? / I just won? / you're moving to Paris?
        / that is the last thing I expected / hold on, that was you? / my jaw is on the floor / since when do you cook?
        / they picked me? / I was not ready for that / how long have you been standing there?
        / did that really just happen? / you are full of surprises / so it was you / I had to read it twice
        / it just appeared out of thin air / you speak Italian? / you kept that a secret for ten years?
        / what happened to your hair? / this is so unexpected / I can't believe {thing} / wait, what about {thing}?
        / you're telling me this is about {thing}? / nobody warned me about {thing} / I had no idea about {thing}
        / who knew about {thing}? / what do you mean, {thing}? / hold the phone, you forgot {thing}?
        / I never expected {thing} / all of this because of {thing}? / you seriously paid for {thing}?
        / when did you find out about {thing}?
    """),
    "fear": _bank("""
        I'm scared / what are we going to do? / did you hear that? / please don't leave me / I'm so nervous
        / this is bad / I don't want to die / somebody's in there / don't go in there / I can't look / is it safe?
        / what if they find out? / we have to get out of here / I have a terrible feeling / I can't breathe
        / my hands are shaking / I'm freaking out / please be careful / lock the door / don't move
        / he's going to kill me / what was that noise? / it's right behind you / I'm terrified
        / I think somebody's following us / call the police / they're coming / please don't hurt me / hide
        / what if something goes wrong? / I can't do this / keep your voice down / don't turn off the lights
        / stay close to me / I'm too afraid to ask / I haven't slept at all / my heart is pounding
        / I think I'm going to faint / stay back / it's getting closer / what if it's serious?
        / I don't want to be alone tonight / I'm in so much trouble / please tell me that was the wind
        / I'm begging you, don't open it / I saw something move / we're never getting out of this / I can't feel my legs
        / what if nobody comes? / I've got goose bumps / I think I left the stove on
        / oh please, oh please, let it be nothing / get me down from here / it's so dark in here
        / I'm going to lose everything / what have I done? / we're doomed / I can't stop shaking / the elevator is stuck
        / don't let go of my hand / I'm so worried about {thing} / I'm scared of {thing} / I'm dreading {thing}
        / what if we lose {thing}? / I'm panicking about {thing} / I had a nightmare about {thing}
        / I'm too nervous to think about {thing} / please don't let anything happen to {thing}
        / I get chills just thinking about {thing} / what if they ask me about {thing}?
        / I've been losing sleep over {thing} / I'm afraid it's about {thing}
    """),
    "sadness": _bank("""
        I'm so sorry / I miss you / I'm sorry / I feel terrible / it's over / this is so sad / I'm all alone
        / I'm going to miss you / I never got to say goodbye / she left me / it's all my fault
        / I don't know what to do anymore / I just want to cry / he's gone / that breaks my heart
        / I wish I could go back / nobody came / I thought we were friends / it hurts so much / I can't stop crying
        / I really loved him / I let everybody down / she's not coming back / I'll never find anybody
        / it's not the same without you / I'm so disappointed / I blew it / I should have been there / what's the point?
        / I had such high hopes / they forgot my birthday / I was really looking forward to it / I feel so stupid
        / why does this always happen to me? / I guess this is goodbye / we used to be so happy / I didn't get it
        / I'm never going to be good enough / I lost it forever / it was the last one / he didn't even call
        / I don't feel like eating / I'm sorry for your loss / she was like a sister to me / I just feel empty
        / I ruined everything / it's been a rough year / can I have a hug? / nobody understands
        / I still keep his picture / poor thing / I can't pretend anymore / I gave it my best and it wasn't enough
        / we broke up / I'm just so tired of being sad / they said no / I don't think she loves me / I cried all night
        / there goes my last chance / I wish you didn't have to go / I miss {thing} / I'm so sad about {thing}
        / I could cry about {thing} / I'm really sorry about {thing} / I feel awful about {thing}
        / it's such a shame about {thing} / I still can't talk about {thing} / I had to say goodbye to {thing}
        / I was so hopeful about {thing} / nobody cares about {thing} anymore / I'm heartbroken about {thing}
        / I guess I can forget about {thing}
    """),
    "joy": _bank("""
        I love it / I'm so happy / that's great / that's wonderful / congratulations / thank you so much / I love you
        / this is amazing / we did it / I'm so proud of you / I got the job / I'm so excited / that's so sweet
        / good for you / this is the best day ever / you're the best / it's perfect / you made it / I missed you guys
        / happy birthday / that's so funny / I can't wait / it's so good to see you / they said yes
        / we're having a baby / I'm in love / this is so much fun / you look beautiful / that is fantastic news
        / come here and give me a hug / nice / awesome / let's celebrate / I couldn't be happier / she's adorable
        / we won / dinner's on me / cheers, everybody / I feel great / everything is going my way / it worked
        / you are hilarious / I haven't laughed this hard in years / that's my girl / I'm having the time of my life
        / it's a dream come true / this is delicious / lucky you / best news I've heard all week
        / I knew you could do it / let's dance / I'm over the moon / you guys are so cute together
        / what a beautiful day / welcome home / isn't she lovely? / how great is that? / guess who got in? / it's a boy
        / that made my day / high five / my kind of evening / that's the spirit / I love {thing}
        / I'm so excited about {thing} / I can't wait to tell everybody about {thing} / thank you so much for {thing}
        / I'm so happy about {thing} / let's drink to {thing} / we have to celebrate {thing} / nothing beats {thing}
        / you're going to love {thing} / I had so much fun with {thing} / I can't stop smiling about {thing}
        / how great is {thing}?
    """),
    "disgust": _bank("""
        that's disgusting / that is so gross / that's so gross / I'm going to be sick / get that away from me
        / it smells awful / what is that smell? / I can't even look at it / that's just wrong / don't touch me with that
        / you are sick / that's nasty / who would eat that? / it's all sticky / that is revolting / I need a shower
        / don't put that in your mouth / I just threw up a little / that's the worst thing I ever tasted
        / there's a hair in it / it's covered in mold / I'm never eating here again / wash your hands
        / how can you eat that? / he picks his teeth with it / it's green / that turns my stomach
        / I think it's still moving / you didn't flush? / why is it wet? / she's so fake it makes me sick
        / you smell like a wet dog / keep your feet off my pillow / that is not sanitary / I don't even want to know
        / he licked the spoon and put it back / what a creep / I can't believe you kissed him
        / it's been in there since March / spit it out / too much information / I lost my appetite / that's foul
        / you wore that twice? / I wouldn't touch it with a stick / what kind of person does that? / it tastes like soap
        / there's gum in my hair / his fingernails are filthy / that's a used one / it's dripping on my shoe
        / you double dipped? / it oozes / please chew with your mouth closed / I can still taste it / that's vile
        / he clips his toenails in bed / the whole thing was so tacky / burn it / that rug has seen things
        / oh, that went down the wrong way / I feel sick when I think about {thing} / I'm disgusted by {thing}
        / there's something gross about {thing} / I can't stomach {thing} / please keep {thing} away from me
        / the smell of {thing} is still on my coat / who would want {thing}? / I get queasy from {thing}
        / I'd rather lick the floor than hear about {thing} / {thing} makes my skin crawl
        / just the thought of {thing} makes me gag / what did you do to {thing}?
    """),
    "anger": _bank("""
        leave me alone / shut up / how could you do that? / I hate you / get out / stop it / what is wrong with you?
        / I'm so mad at you / that's not fair / don't you dare / I've had enough / you lied to me
        / who do you think you are? / I don't want to hear it / give it back / that was mine / stop yelling at me
        / I can't stand him / are you out of your mind? / you always do this / I told you a hundred times
        / don't tell me to calm down / this is ridiculous / you ruined my shirt / I will never forgive you
        / you had no right / mind your own business / get your hands off me / what the hell? / I said no
        / you're unbelievable, you know that? / he did it on purpose / stay out of my room / this is your fault
        / don't you ever listen? / I'm not talking to you / you went behind my back / quit following me
        / I want my money back / you owe me an apology / who ate my sandwich? / you people are impossible
        / I'm going to strangle him / knock it off / you never pay attention / I waited for two hours
        / is this some kind of joke? / you promised me / back off / I want to speak to the manager
        / that son of a gun cheated / don't walk away from me / you're such a jerk / I swear, one more word
        / you took the last one again / put it down right now / you make me so angry / get over yourself
        / nobody asked you / why can't you just do your job? / I'm sick of {thing} / I've had it with {thing}
        / don't even talk to me about {thing} / who cares about {thing}? / I'm so angry about {thing}
        / this is the last time I pay for {thing} / you lied to me about {thing} / stop blaming me for {thing}
        / keep your hands off {thing} / I'm done arguing about {thing} / to hell with {thing}
        / why is it always about {thing}?
    """),
}

_STUDIO_LEADING = {
    "neutral": _bank("If you say so. / As they say."),
    "surprise": _bank("Get a load of this. / Pinch me."),
    "fear": _bank("I'm totally calm. / No big deal."),
    "sadness": _bank("Don't worry about me. / I'm fine, I'm fine."),
    "joy": _bank("You monster. / I hope you're ashamed."),
    "disgust": _bank("Oh, terrific. / Charming. / Oh, wonderful."),
    "anger": _bank("Oh, sure. / Yeah, right. / Oh, great. / Sure, why not."),
}
_STUDIO_TRAILING = {
    "neutral": _bank("Or whatever. / Allegedly. / In theory. / Not that it matters. / So to speak."),
    "surprise": _bank("And I'm the queen of England. / Next you'll tell me pigs can fly. / You're pulling my leg."),
    "fear": _bank("That's me, cool as a cucumber. / Nothing to see here. / No reason. / Ha, ha, ha... ha."),
    "sadness": _bank("I'm fine, really. / Don't mind me. / It's nothing, honestly. / I'll live. / No, no, I'm okay."),
    "joy": _bank("Just kidding. / Gotcha. / I'm messing with you. / You should see your face. / Only teasing."),
    "disgust": _bank("Really classy. / My compliments to the chef. / How appetizing. / What a treat."),
    "anger": _bank("Just what I needed. / Lucky me. / How thoughtful. / Thanks a lot. / Thanks for nothing."),
}

_STUDIO_TOPICS = {
    "work": Topic(
        _bank("""
            the meeting / my job / the new boss / that job interview / the night shift / the promotion / my review
            / that presentation / the whole project / the schedule / the people in accounting / the corner office
        """),
        _bank("""
            the meeting got moved to Thursday / there's a new guy in accounting / they gave {who} the corner desk
            / the boss wants that report by Friday / they fixed the copier on the third floor
            / we have to train two people next week / the client is flying in from Denver
            / they're hiring again in March / {who} is covering the late shift / the office is closed on Monday
            / the interview is at ten thirty / everybody has to wear a badge from now on
        """),
        _bank("""
            did the boss call you back? / who's working this weekend? / is there a meeting this afternoon?
            / when do they post the schedule? / has {who} finished the report? / are you going in tomorrow?
        """),
    ),
    "dating": Topic(
        _bank("""
            that blind date / my ex / the guy from the gym / the girl next door / our anniversary / that phone number
            / my ex-wife / the first kiss / Valentine's Day / the engagement ring / your love life / that love letter
        """),
        _bank("""
            {who} is seeing somebody new / he asked her out for Saturday / they met at the laundromat
            / she left her number / my ex is going to be at the restaurant / {who} bought a ring
            / they've been together for six months / he sent flowers to the office / she wants me to meet her parents
            / he's picking her up at eight / they kissed on the balcony / {who} is staying over tonight
        """),
        _bank("""
            are you two going out again? / did she call you? / what did he write on the card? / is {who} still single?
            / how did the date go? / did he bring flowers?
        """),
    ),
    "food": Topic(
        _bank("""
            the meat loaf / that casserole / your lasagna / the birthday cake / the leftovers / my sandwich
            / the tuna salad / the chicken soup / that pizza place / the cheesecake / your mother's cooking
            / the milk in the fridge
        """),
        _bank("""
            dinner is at seven / the pizza is on its way / there's soup on the stove / {who} made a casserole
            / the turkey has to come out at noon / we're out of milk / they put mushrooms on it
            / the cake is in the oven / {who} ate the rest of the noodles / the restaurant is booked until nine
            / we've got eggs and half an onion / they opened a new place on Fifth Street
        """),
        _bank("""
            is there any coffee left? / what do you want on your pizza? / who made the salad? / did you try the fish?
            / how long has this been in the fridge? / are we cooking or ordering in?
        """),
    ),
    "home": Topic(
        _bank("""
            the rent / the landlord / the broken heater / this apartment / the old couch / the lease / my room
            / the bathroom door / the security deposit / the new curtains / the spare key / the dishwasher
        """),
        _bank("""
            the rent is due on the first / the landlord called / {who} is moving out in June / the heater is broken
            / the plumber comes at noon / we're painting the hallway / the couch doesn't fit through the door
            / somebody left the window open / the lease is up in the fall / they shut off the water until three
            / {who} has the spare key / there's a box for you downstairs
        """),
        _bank("""
            did you pay the rent? / who has the keys? / is the washing machine free? / where does this lamp go?
            / did the landlord come by? / are you looking for a roommate?
        """),
    ),
    "family": Topic(
        _bank("""
            your mother / my sister's wedding / Thanksgiving / my father / the baby shower / your brother
            / my grandmother's ring / the family reunion / my cousin / the baby's name / your in-laws / Dad's toast
        """),
        _bank("""
            your mother is coming for dinner / my sister is getting married / the baby is due in May
            / Dad wants to sell the house / my brother is staying with us / {who} has a twin sister
            / my parents are driving up on Sunday / Grandma sent a package / they named him after my uncle
            / my cousin is moving to town / {who} is having Thanksgiving this year / they're adopting
        """),
        _bank("""
            how is your mother? / did you call your sister? / is your dad still in Florida? / who's watching the kids?
            / are your parents staying the night? / have you met {who}'s brother?
        """),
    ),
    "party": Topic(
        _bank("""
            the party / my costume / the guest list / New Year's Eve / the surprise party / that karaoke night
            / the invitations / your birthday / the band / the champagne / the decorations / my present
        """),
        _bank("""
            the party starts at nine / {who} is bringing the ice / they invited the whole building
            / the band is setting up / everybody has to wear a hat / {who} is dressed as a pirate
            / there are forty people on the list / the balloons are in the closet / they hired a magician
            / your present is in the car / we're doing karaoke later / somebody is jumping out of the cake
        """),
        _bank("""
            are you coming to the party? / who invited {who}? / what are you wearing tonight?
            / did you get the balloons? / whose birthday is it? / is there going to be dancing?
        """),
    ),
    "pets": Topic(
        _bank("""
            the cat / my dog / that parrot / the hamster / the puppy / your goldfish / the litter box / the vet
            / our old turtle / the neighbor's poodle / the kittens / dog training
        """),
        _bank("""
            the cat is on the roof / {who} got a puppy / the dog ate a sock / the hamster is out of its cage
            / the parrot learned a new word / the vet can see us at four / somebody has to walk the dog
            / the fish is floating / they're giving away kittens / {who} is allergic to cats
            / the turtle is fifteen years old / the dog sleeps on the couch
        """),
        _bank("""
            did anybody feed the cat? / where's the dog? / is that a ferret? / who's taking the dog out?
            / what did the vet say? / does it bite?
        """),
    ),
    "travel": Topic(
        _bank("""
            the flight / my suitcase / the road trip / our honeymoon / the train ride / that hotel / the passport
            / the cab driver / the beach house / the window seat / the map / our vacation
        """),
        _bank("""
            the train leaves at six / the flight is delayed / they lost my suitcase / we're driving to the lake
            / {who} is at the airport / the hotel has a pool / the cab is downstairs / they moved us to another gate
            / the bridge is closed this weekend / {who} is flying in from London / we land at midnight
            / the bus doesn't stop here anymore
        """),
        _bank("""
            what time is your flight? / did you pack your passport? / who's driving? / is this seat taken?
            / how was the trip? / are we there yet?
        """),
    ),
    "health": Topic(
        _bank("""
            the doctor / my back / the test results / the hospital / that cough / the dentist / my blood pressure
            / the surgery / the flu shot / your broken toe / the waiting room / those pills
        """),
        _bank("""
            the doctor wants to see me again / {who} is in the hospital / the test results come on Tuesday
            / it's just a cold / they had to take an X-ray / he's been in bed since Sunday
            / the dentist moved my appointment / she fell off a ladder / {who} has a fever / he takes two pills a day
            / the nurse said to wait here / they're operating in the morning
        """),
        _bank("""
            what did the doctor say? / does it hurt when I do this? / are you taking anything for that?
            / how's your back? / is {who} out of the hospital? / do you have an aspirin?
        """),
    ),
    "money": Topic(
        _bank("""
            the bill / my credit card / the loan / the lottery ticket / the fifty bucks / my savings / the tax refund
            / the bank / the parking ticket / the tip / the car payment / that check
        """),
        _bank("""
            the bill came to ninety dollars / {who} owes me fifty bucks / the bank closes at four
            / the check is in the mail / they raised the price again / there's twenty dollars in the jar
            / they want cash up front / we split it three ways / {who} won two hundred dollars
            / the car costs more than the house / somebody used my card in Reno / taxes are due next week
        """),
        _bank("""
            can you lend me ten bucks? / who's paying for this? / how much was it? / did you cash the check?
            / is the tip included? / do you take credit cards?
        """),
    ),
    "clothes": Topic(
        _bank("""
            that sweater / my new shoes / the wedding dress / your haircut / the leather pants / the blue tie
            / my grandfather's coat / that purse / the bridesmaid dress / the red boots / your pajamas / the winter sale
        """),
        _bank("""
            the shoes are on sale / {who} is wearing your sweater / the dress has to go back by Friday
            / they only had it in green / the tie goes with the gray suit / somebody spilled wine on the dress
            / the zipper is stuck / he shaved off his beard / {who} dyed her hair / the dry cleaner lost my jacket
            / they sell hats on the second floor / it's a size too small
        """),
        _bank("""
            does this come in blue? / is that my shirt? / where did you get those boots? / are you wearing that tonight?
            / did you cut your hair? / how much were the shoes?
        """),
    ),
    "neighbors": Topic(
        _bank("""
            the neighbors / the noise upstairs / my parking spot / the drum lessons / the guy across the hall
            / the elevator / that doorman / the building meeting / the trash in the hallway / the lady in 4B
            / the mailbox / the rooftop garden
        """),
        _bank("""
            the neighbors are moving the furniture again / somebody parked in our spot
            / the guy upstairs plays the drums / there's a note on the door / {who} signed the petition
            / the lady downstairs has a new boyfriend / they're having a building meeting
            / the mailman left it with the super / the elevator is out until Monday / the people in 3C are from Norway
            / {who} broke the buzzer / somebody took our newspaper
        """),
        _bank("""
            who's banging on the wall? / did you talk to the neighbors? / is that music coming from upstairs?
            / who lives in 5A? / did you get my mail? / can you hear that through the wall?
        """),
    ),
    "games": Topic(
        _bank("""
            the game / poker night / the playoffs / that crossword / the chess club / the remote / bowling night
            / the season finale / the board game / my fantasy team / the science fiction marathon
            / the touch football game
        """),
        _bank("""
            the game starts in ten minutes / the Knights are up by two / {who} is dealing the cards
            / it went into overtime / we're short one player / the show is on after the news / they traded the goalie
            / {who} is keeping score / somebody sat on the remote / the movie is three hours long
            / I've got two tickets for tonight / it's a rerun
        """),
        _bank("""
            who's winning? / is it my turn? / did you tape the game? / what channel is it on?
            / are you any good at chess? / do we have enough players?
        """),
    ),
    "school": Topic(
        _bank("""
            the exam / my thesis / the school play / your teacher / the science fair / that essay / the reunion
            / the homework / summer camp / the spelling bee / my old yearbook / the scholarship
        """),
        _bank("""
            the exam is on Wednesday / {who} is teaching a class / the school called
            / they gave him the lead in the play / the paper has to be ten pages / the kids have the day off
            / class is in the other building / {who} went back to school / the bus picks them up at seven
            / they canceled the field trip / our reunion is next month / the professor reads from his own book
        """),
        _bank("""
            did you do the homework? / what's on the test? / who's your teacher? / is there school tomorrow?
            / how was class? / are you going to the reunion?
        """),
    ),
    "mess": Topic(
        _bank("""
            the trash / that stain / the dirty dishes / the thing in the sink / those old socks / the toilet / the drain
            / the mystery jar / the carpet / that sponge / the laundry basket / the back of the fridge
        """),
        _bank("""
            there's something in the sink / the trash hasn't been out since Monday / the dishes are still in the tub
            / somebody put gum under the table / {who} left wet towels on the bed / the drain is backed up
            / the sponge is gray / there's a puddle under the fridge / {who} found a tooth in the carpet
            / the garbage bag has a hole in it / it's {who}'s week to clean / something died behind the stove
        """),
        _bank("""
            who left this here? / what is that on the wall? / when did you last clean this? / is that a raisin?
            / did you take out the trash? / whose sock is this?
        """),
    ),
    "night": Topic(
        _bank("""
            the noise in the basement / the storm / that phone call / the fire escape / the dark / the alarm
            / that shadow / the haunted house / the spider / the power outage / the stranger on the stairs
            / the fire drill
        """),
        _bank("""
            the lights went out / there's a storm coming / somebody's on the fire escape / the alarm is going off
            / there was a man in the hallway / the phone rang and nobody was there / the door was open when we got back
            / {who} heard footsteps / there's a spider in the bathtub / the basement light is on
            / the window was locked from outside / they found a hole in the fence
        """),
        _bank("""
            is anybody there? / did you lock the door? / who turned off the lights? / do you smell smoke?
            / where's the flashlight? / was that thunder?
        """),
    ),
}

_STUDIO_VOICE = {
    "neutral": (
        _bank("""
        calm / even / matter-of-fact / relaxed / steady / ordinary / composed / unhurried / casual / businesslike
    """),
        _bank("""
                    speaking at a normal pace / in an even tone / with little change in pitch / in a plain, level voice
                    / at an ordinary volume / pausing now and then / as if reading a list
                """),
    ),
    "surprise": (
        _bank("""
        surprised / astonished / startled / amazed / shocked / stunned / taken aback / incredulous / baffled
        / wide awake all at once
    """),
        _bank("""
                     with a sudden jump in pitch / drawing a quick breath / stretching the vowels
                     / ending on a high note / with a gasp at the start / almost squeaking / with the voice shooting up
                 """),
    ),
    "fear": (
        _bank("scared / nervous / frightened / anxious / worried / panicky / uneasy / terrified / shaky / tense"),
        _bank("""
                 with a trembling voice / whispering quickly / breathing fast / stumbling over the words
                 / with a thin, tight voice / almost out of breath / swallowing between words
             """),
    ),
    "sadness": (
        _bank("sad / down / disappointed / tearful / heartbroken / hurt / gloomy / weary / sorry / defeated"),
        _bank("""
                    with a low, slow voice / trailing off / close to tears / with long pauses / sighing heavily
                    / barely above a whisper / with a break in the voice
                """),
    ),
    "joy": (
        _bank("happy / cheerful / excited / delighted / amused / thrilled / playful / upbeat / warm / giddy"),
        _bank("""
                with a smile in the voice / laughing between words / with a bright, lively voice
                / speaking fast and light / in a sing-song tone / giggling at the end / humming the last word
            """),
    ),
    "disgust": (
        _bank("""
        disgusted / grossed out / repulsed / put off / appalled / queasy / revolted / scornful / nauseated / snooty
    """),
        _bank("""
                    with a long groan / drawing the words out in distaste / making a gagging noise / with a nasal edge
                    / clicking the tongue / as if holding the nose / spitting the words out slowly
                """),
    ),
    "anger": (
        _bank("""
        angry / annoyed / furious / irritated / frustrated / outraged / fed up / hostile / bitter / exasperated
    """),
        _bank("""
                  with a raised voice / almost shouting / biting off each word / in a hard, clipped tone
                  / with a sharp edge / speaking through the teeth / getting louder and louder
              """),
    ),
    "vague": (
        _bank("""
        hard to read / unclear / muffled / ordinary / distant / difficult to make out / not quite there / mixed
    """),
        _bank("""
                  at an ordinary volume / with laughter from the audience on top / with music over the words
                  / too short to tell / with the words partly drowned out / while somebody else is talking
              """),
    ),
}
_STUDIO_FACE = {
    "neutral": (
        _bank("""
        neutral / calm / relaxed / attentive / composed / thoughtful / at ease / blank / serious / settled
    """),
        _bank("""
                    with a resting mouth / with a steady gaze / brows at rest / head level / hands in the lap
                    / blinking normally / with a loose jaw
                """),
    ),
    "surprise": (
        _bank("""
        surprised / astonished / amazed / shocked / startled / stunned / taken aback / speechless / bewildered
        / wide-eyed
    """),
        _bank("""
                     with raised eyebrows / mouth hanging open / eyes wide / head pulled back / with a dropped jaw
                     / one hand over the mouth / leaning in to see better
                 """),
    ),
    "fear": (
        _bank("scared / afraid / nervous / worried / frightened / anxious / terrified / alarmed / tense / jumpy"),
        _bank("""
                 eyes darting around / backing away / shoulders pulled up / biting the lip / brows drawn up and together
                 / gripping the chair / hiding behind a pillow
             """),
    ),
    "sadness": (
        _bank("""
        sad / unhappy / disappointed / hurt / tearful / heartbroken / downcast / gloomy / miserable / lost
    """),
        _bank("""
                    eyes on the floor / corners of the mouth turned down / with wet eyes / shoulders slumped
                    / wiping a tear / with a quivering chin / staring at nothing
                """),
    ),
    "joy": (
        _bank("happy / delighted / cheerful / excited / pleased / amused / thrilled / proud / radiant / tickled"),
        _bank("""
                with a big smile / grinning from ear to ear / eyes crinkled / laughing / clapping both hands
                / beaming across the table / bouncing on the heels
            """),
    ),
    "disgust": (
        _bank("""
        disgusted / grossed out / repulsed / revolted / sickened / appalled / queasy / disdainful / put off / sour
    """),
        _bank("""
                    nose wrinkled / upper lip curled / turning the head away / tongue sticking out / holding the nose
                    / pushing the plate away / wiping the hands on a towel
                """),
    ),
    "anger": (
        _bank("angry / furious / annoyed / irritated / mad / frustrated / enraged / stern / hostile / indignant"),
        _bank("""
                  brows pulled down / jaw clenched / glaring / lips pressed together / pointing a finger
                  / arms crossed tight / with flared nostrils
              """),
    ),
    "vague": (
        _bank("""
        hard to read / partly hidden / out of focus / blank / turned away / half in the dark / too far off / unclear
    """),
        _bank("""
                  seen from behind / with hair over the face / head level / half out of the frame / behind a coffee mug
                  / while the camera pans away
              """),
    ),
}

STUDIO = Wording(
    openers=_STUDIO_OPENERS,
    cues=_STUDIO_CUES,
    leading=_STUDIO_LEADING,
    trailing=_STUDIO_TRAILING,
    hedges=_bank("""
        I guess / I think / apparently / I heard / it looks like / I'm told / as you know, / they say
        / from what I hear, / turns out
    """),
    topics=_STUDIO_TOPICS,
    voice=_STUDIO_VOICE,
    face=_STUDIO_FACE,
    audio=_bank("{subject} sounds {word}, {detail} / sounds {word}, {detail} / the voice sounds {word}, {detail}"),
    video=_bank("""
        {subject} looks {word}, {detail} / in the shot, {subject} looks {word}, {detail}
        / {subject} looks {word}: {detail}
    """),
    sure=_bank("{name} / the speaker"),
    unsure=_bank("someone"),
)

# ----------------------------------------------------------------------------------------------------------------- wild

_WILD_OPENERS = {
    "any": _bank("""
        Right then, / Listen, mate, / Er, / Ah, / Look here, / Thing is, / Mate, / Erm, / Aye, / Well now, / To be fair,
        / Here,
    """),
    "neutral": _bank("Righto, / Yeah, no, / Cheers, / Ta, / Fair enough, / Anyhow, / Mind you,"),
    "surprise": _bank("Blimey! / Crikey! / Hang about, / You what? / Get away! / Good heavens! / Well I never!"),
    "fear": _bank("Oh heck, / Oh crumbs! / Oh Lord, / Hush! / Watch out! / Oh help! / Steady on,"),
    "sadness": _bank("Oh, love, / Ah, mate, / Poor lamb, / Oh, bless, / Alas, / Ah, no, / Oh, pet,"),
    "joy": _bank("Get in! / Hurrah! / Lovely! / Oh, brilliant! / Hiya! / Corking! / Oh yes!"),
    "disgust": _bank("Urgh! / Pfft, / Yuck, mate, / Oh, grim! / Bleurgh! / Crikey, no, / Phwoar, no,"),
    "anger": _bank("""
        Oi! / Bloody hell! / Now look here! / For heaven's sake! / Do you mind? / Right, that's it! / How dare you!
    """),
}

_WILD_CUES = {
    "neutral": _bank("""
        suppose so / I couldn't tell you / pop it over there / I'll put the kettle on / hang on a tick
        / shall we head off? / I'll give you a ring / it's just past the chemist / I shan't be long
        / you might want to queue / that'll do / whereabouts is it? / I'm off to the shops / he's round the back
        / have a look on the shelf / it's half past, I reckon / I'll be down in a jiffy / could you pass us the sugar?
        / it's the same as last week / not that I'm aware of / mine's the grey one / they open at nine
        / we'll see how it goes / I'd take the Tube / it could go either way, really / I left it in the boot
        / which queue is this? / I've yet to look into it / do you take milk? / it's down the lane
        / a word about {thing}, if I may / I'll sort out {thing} this week / is there any news on {thing}?
        / I was reading up on {thing} / we ought to discuss {thing} / could you look into {thing}?
    """),
    "surprise": _bank("""
        you never / I'm gobsmacked / you're having a laugh / pull the other one / well, knock me down
        / since when, may I ask? / I nearly fell off my chair / is that honestly you? / I'd not have credited it
        / where did that spring from? / you could have knocked me over / that's a turn-up for the books
        / he actually went and did it? / what, today? / I had to rub my eyes / nobody let on
        / you're not serious, are you? / how in the world? / I'm lost for words / it came clean out of the blue
        / she never said that, did she? / I can scarcely believe it / fancy seeing you here
        / they've gone and picked us? / that's news to me / I did a double take / it's never Tuesday already, is it?
        / and you kept it quiet till now? / who would have thought? / it popped up out of nowhere
        / what's all this about {thing}? / you're joking about {thing}, surely? / I'm stunned by {thing}
        / fancy that, {thing} / nobody breathed a word about {thing} / not {thing}, of all things
    """),
    "fear": _bank("""
        I'm petrified / I'm scared stiff / don't go up there on your own / something's out there / we're done for
        / I've gone all cold / what if it comes back? / bolt the door / I don't like the look of this / he's got a knife
        / I'm a bag of nerves / will it be all right, do you think? / my knees have gone to jelly
        / I can't bear to watch / run for it / keep hold of me / I'm frightened to ask
        / there's something scratching in the loft / we'll be caught / I feel faint with worry / what if I muck it up?
        / it gives me the creeps / I daren't look down / stop, it's not safe / I'm shaking like a leaf
        / they'll sack me for certain / someone's at the window / I don't fancy our chances / ring the police, quick
        / please say it was only the cat / I'm worried sick over {thing} / I'm dead nervous about {thing}
        / I'm frightened of {thing} / what if it's to do with {thing}? / I've been lying awake over {thing}
        / I daren't mention {thing}
    """),
    "sadness": _bank("""
        I'm gutted / I'm ever so sorry / I do miss her / it's a crying shame / I've made a right mess of it
        / he's passed away / I feel dreadful / I've nobody left / it's my own silly fault / she's packed her bags
        / I was in bits all night / there's no point carrying on / I'm heartsick / they turned me down again
        / we shan't be seeing him again / I've let the side down / I keep thinking of the old days
        / it's not been the same since / I'm feeling awfully low / nobody turned up / I had my hopes up, more fool me
        / I do wish you'd stay / I can't seem to stop weeping / he never wrote back / what have I got to show for it?
        / it's the end of the road for us / I feel ever so lonely / I'd give anything to hear her voice
        / all that work for nothing / I could have a good cry / I'm gutted about {thing} / it's a pity about {thing}
        / I do miss {thing} / I'm truly sorry about {thing} / I feel rotten about {thing}
        / I'd pinned my hopes on {thing}
    """),
    "joy": _bank("""
        I'm chuffed to bits / that's brilliant / well done, you / I'm over the moon, honestly / that's made my week
        / smashing / what a cracking day / you're a star / it's come up a treat / I could kiss you
        / we've only gone and won it / bravo / I'm having a whale of a time / aren't you clever?
        / that is absolutely lovely / a toast to the pair of you / thanks ever so much
        / I've not laughed so much in ages / many happy returns / this is the life / I'm tickled pink
        / she said she'd have me / drinks are on the house / it's a belter / we're on top of the world
        / I'm dead pleased for you / what could be nicer? / that's the ticket / you little beauty / it went like a dream
        / I'm thrilled with {thing} / I do love {thing} / here's to {thing} / I'm ever so pleased about {thing}
        / you can't beat {thing} / I'm looking forward to {thing} no end
    """),
    "disgust": _bank("""
        that's rank / it's minging / that's proper grim / it reeks / I feel queasy / that's put me off my tea
        / how vulgar / get that manky thing off me / it's gone off / you mucky pup / what's that whiff?
        / I wouldn't feed it to a pig / there's a slug in it / he never washes / I've come over all bilious
        / that's downright indecent / it's crawling with ants / don't wipe it on your sleeve / it's slimy to the touch
        / that man makes my flesh creep / have you no shame? / he's been at the earwax again
        / the stench is something else / I retched, I honestly retched / it's mouldy underneath
        / you're not putting that on toast, are you? / it's all congealed / what a ghastly business
        / it wants fumigating / somebody's been sick in it / I find {thing} utterly foul / I'm repelled by {thing}
        / there's a pong coming off {thing} / I can't abide {thing} / you can keep {thing}, thank you
        / who on earth would touch {thing}?
    """),
    "anger": _bank("""
        sod off / I'm livid / you've got a nerve / pack it in / don't you take that tone / I've had it up to here
        / push off / what are you playing at? / that's bang out of order / I'm fuming / you cheeky so-and-so / give over
        / I won't stand for it / you've wrecked it / who gave you the right? / he's a liar and a cheat
        / it makes my blood boil / are you deaf or what? / stop your whingeing / I could wring his neck
        / get off my land / you never blooming listen / it's daylight robbery / I demand a refund
        / do that again and you're for it / keep your nose out of it / it's an absolute disgrace
        / call yourself a friend? / wipe that grin off your face / she's done me over again
        / I'm fed up to the back teeth with {thing} / don't get me started on {thing} / blast {thing}
        / I'm seething about {thing} / you've some cheek, bringing up {thing} / what have you done with {thing}?
    """),
}

_WILD_LEADING = {
    "neutral": _bank("So they tell me. / As it were."),
    "surprise": _bank("Stop the press. / Hold the front page."),
    "fear": _bank("Not bothered, me. / Nerves of steel, that's me."),
    "sadness": _bank("I'll manage. / Never mind me."),
    "joy": _bank("You absolute villain. / Shame on you, you rascal."),
    "disgust": _bank("Oh, delightful. / Very tasteful."),
    "anger": _bank("Oh, marvellous. / That's just dandy."),
}
_WILD_TRAILING = {
    "neutral": _bank("Give or take. / Supposedly. / For what it's worth."),
    "surprise": _bank("And my aunt's a teapot. / Tell that to the marines."),
    "fear": _bank("Keeping calm, as you see. / Right as rain, me."),
    "sadness": _bank("Mustn't grumble. / I'll get over it. / Don't fuss, I'm all right."),
    "joy": _bank("Only pulling your leg. / Had you going there. / I'm having you on."),
    "disgust": _bank("What a delicacy. / Ever so refined."),
    "anger": _bank("Cheers for that. / Much obliged, I'm sure. / Big thanks to everyone involved."),
}

_WILD_TOPICS = {
    "work": Topic(
        _bank("my notice / the rota / the gaffer / the staff canteen / that contract / my overtime"),
        _bank("""
            the gaffer wants a word at noon / they've changed the rota / {who} has handed in a notice
            / the van's in for its service / they're taking on temps for Christmas / the union rep is coming round
        """),
        _bank("are you on earlies? / has the gaffer been in? / who's got the office keys?"),
    ),
    "dating": Topic(
        _bank("my old flame / that bloke from the pub / the dating app / her new fella / the proposal / that snog"),
        _bank("""
            {who} has a new fella / he's taking her to the pictures / they matched on that app
            / she's bringing a plus-one / he popped round with roses / they're walking out together
        """),
        _bank("has he texted back? / who's the lucky lady? / are you two an item?"),
    ),
    "food": Topic(
        _bank("the shepherd's pie / that curry / the chip shop / my packed lunch / the trifle / the black pudding"),
        _bank("""
            tea's at half five / the chip shop shuts at ten / there's a pie in the oven / {who} is doing a roast
            / we're low on biscuits / they've put raisins in the curry
        """),
        _bank("fancy a brew? / what's for pudding? / is there any more gravy?"),
    ),
    "home": Topic(
        _bank("the flat / the boiler / the damp patch / the council tax / my bedsit / the back garden"),
        _bank("""
            the boiler's packed up / the flat's on the market / {who} is doing up the loft
            / the decorator's coming Wednesday / there's a leak under the bath / the lodger moves in next week
        """),
        _bank("who's left the hob on? / is the immersion on? / have you rung the estate agent?"),
    ),
    "family": Topic(
        _bank("my nan / our kid / the christening / your mum / Uncle Bert / the in-laws' caravan"),
        _bank("""
            nan's stopping till Sunday / our kid's joined the navy / mum's knitting again / {who} is godmother
            / the twins start nursery / they're holding the christening in June
        """),
        _bank("how's your mum keeping? / is your nan about? / are the grandparents coming?"),
    ),
    "party": Topic(
        _bank("the hen do / the raffle / the fancy dress / bonfire night / the disco / my leaving do"),
        _bank("""
            the do kicks off at eight / {who} is on the decks / they've booked the village hall / it's fancy dress
            / the buffet's under the cling film / there's a raffle at half nine
        """),
        _bank("are you bringing a bottle? / who's doing the music? / what's the theme?"),
    ),
    "pets": Topic(
        _bank("the budgie / that whippet / the moggy / the rabbit hutch / the tortoise / the ferrets"),
        _bank("""
            the budgie's flown off / {who} is minding the whippet / the rabbit's had six / the moggy brought in a mouse
            / the tortoise has woken up / the dog wants worming
        """),
        _bank("who's let the dog in? / is it house-trained? / has the rabbit been fed?"),
    ),
    "travel": Topic(
        _bank("the ferry / the M25 / the replacement bus / my railcard / the caravan park / that lay-by"),
        _bank("""
            the ferry sails at dawn / there's a tailback on the M25 / {who} is stuck in Crewe
            / it's a replacement bus today / they've clamped the car / we're camping in Wales
        """),
        _bank("which platform is it? / have you got change for the meter? / is this the Brighton train?"),
    ),
    "health": Topic(
        _bank("the GP / my hip / the blood test / A and E / that rash / the prescription"),
        _bank("""
            the GP's referred me / {who} is having the hip done / the blood test's on Friday
            / he's been signed off for a month / she's under the specialist / they've kept him in overnight
        """),
        _bank("have you seen the GP? / is it catching? / how's the leg?"),
    ),
    "money": Topic(
        _bank("the gas bill / the overdraft / a tenner / my pension / the premium bonds / the fine"),
        _bank("""
            it was forty quid / {who} still owes me a tenner / they've put the fares up / the cash point's empty
            / the pension comes on Thursday / they want a deposit by noon
        """),
        _bank("can you sub me a fiver? / who's buying this round? / is it cash only?"),
    ),
    "clothes": Topic(
        _bank("my best trousers / that cardigan / the wellies / her hat / the school blazer / your trainers"),
        _bank("""
            {who} has the same cardigan / the trousers want taking up / the jumper shrank in the wash
            / it's from the charity shop / he's had his hair cut short / they're two for a tenner on the market
        """),
        _bank("is that a new coat? / have you seen my wellies? / does it suit me?"),
    ),
    "neighbors": Topic(
        _bank("""
            the hedge / them next door / the wheelie bins / the bagpipes / the residents' committee / that car alarm
        """),
        _bank("""
            them next door are having an extension / the bins go out tonight / somebody's trimmed our hedge
            / {who} is on the committee / number nine's got a hot tub / the lad opposite is learning the bagpipes
        """),
        _bank("whose van is that? / have they finished drilling? / who's moved in at number six?"),
    ),
    "games": Topic(
        _bank("the match / the pub quiz / the darts / the penalty shoot-out / the cricket / bingo night"),
        _bank("""
            kick-off's at three / it's nil-nil / {who} is in goal / the cricket's rained off / we came third in the quiz
            / they've sold the striker
        """),
        _bank("what's the score? / who's on darts? / did you watch the match?"),
    ),
    "school": Topic(
        _bank("my A levels / the headmaster / the nativity play / detention / sports day / the parents' evening"),
        _bank("""
            results are out on Thursday / {who} is the donkey in the nativity / term starts on the fifth
            / the head wants a letter / it's the egg and spoon race next / they've banned phones in class
        """),
        _bank("have you revised? / who's picking up the kids? / is it half-term?"),
    ),
    "mess": Topic(
        _bank("the compost / that dishcloth / the blocked loo / the bin juice / the grubby kettle / his gym kit"),
        _bank("""
            the loo's blocked / there's fluff in the butter / {who} has left a mug under the bed / the bin bag's split
            / something's growing in the teapot / the gutters want clearing
        """),
        _bank("who trod that in? / is that mould? / when was this last hoovered?"),
    ),
    "night": Topic(
        _bank("the cellar / that howling / the fuse box / the alleyway / the prowler / the gas leak"),
        _bank("""
            the electric's gone off / there's a bloke by the gate / {who} heard something in the cellar
            / there's fog on the moor / the back door was ajar / the phone line's dead
        """),
        _bank("who goes there? / is the torch handy? / did you leave the gate open?"),
    ),
}

_WILD_VOICE = {
    "neutral": (
        _bank("unremarkable / level / everyday / plain / collected / conversational"),
        _bank("no strain in the voice / a regular rhythm / medium loudness / flat melody / an indoor voice"),
    ),
    "surprise": (
        _bank("flabbergasted / thunderstruck / gobsmacked / dumbfounded / staggered / disbelieving"),
        _bank("""
                     pitch leaps upward / a sharp intake of air / a rising yelp / vowels held long
                     / the last word an octave up
                 """),
    ),
    "fear": (
        _bank("petrified / apprehensive / jittery / skittish / spooked / timid"),
        _bank("""
                 a quaver in the throat / hurried half-sentences / hushed and rapid / a wobble on each word
                 / audible panting
             """),
    ),
    "sadness": (
        _bank("sorrowful / dejected / glum / mournful / despondent / forlorn"),
        _bank("a catch in the throat / quiet and drawn out / sniffling / fading at the end / heavy silences"),
    ),
    "joy": (
        _bank("jolly / gleeful / elated / merry / over the moon / jubilant"),
        _bank("chuckling throughout / a bouncy rhythm / a chirpy lilt / whooping / bubbling over"),
    ),
    "disgust": (
        _bank("turned right off / squeamish / contemptuous / nauseous / disapproving / loathing"),
        _bank("""
                    a retching sound / a drawn-out yuck / lips smacked in distaste / a sneering drawl
                    / a snort through the nose
                """),
    ),
    "anger": (
        _bank("livid / cross / irate / incensed / snappish / seething"),
        _bank("""
                  bellowing / a growl underneath / words fired like shots / a fist on the table / hissing consonants
              """),
    ),
    "vague": (
        _bank("indistinct / uncertain / everyday / drowned out / garbled"),
        _bank("""
                  traffic over the voice / medium loudness / wind on the microphone / a bad line / two people at once
              """),
    ),
}
_WILD_FACE = {
    "neutral": (
        _bank("unmoved / impassive / untroubled / placid / deadpan / reserved"),
        _bank("features at rest / chin level / an unwavering look / a closed mouth / an idle glance"),
    ),
    "surprise": (
        _bank("flabbergasted / thunderstruck / gobsmacked / dumbfounded / staggered / open-mouthed"),
        _bank("""
                     brows near the hairline / a slack jaw / eyes like saucers / a hand to the cheek / a step back
                 """),
    ),
    "fear": (
        _bank("petrified / apprehensive / jittery / skittish / spooked / timid"),
        _bank("whites of the eyes showing / flinching / hunched low / nails bitten / frozen to the spot"),
    ),
    "sadness": (
        _bank("sorrowful / dejected / glum / mournful / despondent / forlorn"),
        _bank("red-rimmed eyes / a drooping mouth / face in both hands / a lowered head / a trembling lip"),
    ),
    "joy": (
        _bank("jolly / gleeful / elated / merry / chuffed / jubilant"),
        _bank("dimples showing / teeth flashing / a thumbs-up / cheeks lifted / a little jig"),
    ),
    "disgust": (
        _bank("turned right off / squeamish / contemptuous / nauseous / disapproving / repelled"),
        _bank("a screwed-up nose / a curled lip / a shudder / cheeks puffed / face averted"),
    ),
    "anger": (
        _bank("livid / cross / irate / incensed / scowling / seething"),
        _bank("a knotted brow / bared teeth / a shaking fist / narrowed eyes / a bulging vein"),
    ),
    "vague": (
        _bank("indistinct / uncertain / deadpan / overexposed / obscured"),
        _bank("""
                  backlit by a street lamp / chin level / under an umbrella / blurred by movement / cropped at the nose
              """),
    ),
}

WILD = Wording(
    openers=_WILD_OPENERS,
    cues=_WILD_CUES,
    leading=_WILD_LEADING,
    trailing=_WILD_TRAILING,
    hedges=_bank("""
        I gather / I daresay / so I'm told, / rumour has it / word is, / seems / by all accounts, / I believe
    """),
    topics=_WILD_TOPICS,
    voice=_WILD_VOICE,
    face=_WILD_FACE,
    audio=_bank("heard on the phone: {subject} comes across as {word} - {detail} / tone of voice: {word} - {detail}"),
    video=_bank("""
        phone footage, {subject} seems {word} - {detail} / seen in passing: {subject} seems {word} - {detail}
    """),
    sure=_bank("{name} / the person talking"),
    unsure=_bank("a passer-by"),
)

WORDINGS: Mapping[str, Wording] = {"studio": STUDIO, "wild": WILD, "reworded": WILD}
